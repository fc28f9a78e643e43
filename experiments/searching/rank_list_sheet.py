"""A contact sheet: a query and the samples nearest to it, each in three modalities."""

from collections.abc import Sequence

from data_catalog.storage import filesystems
from experiments.figure_style import png_bytes
from experiments.run.run_figures import HIT, SCREEN_DPI, make_sample_grid, show_pixels
from stmi.images import Pixels
from stmi.modality import MODALITIES

COLUMNS = 7
"""Samples of a line."""


def draw_rank_list(location: str, query: Pixels, found: Sequence[tuple[str, Pixels]], title: str) -> None:
    """Write the sheet to a PNG file, or a URI.

    Args:
        location: File or URI.
        query: Its images, uint8 `(modality, channel, height, width)`.
        found: A caption and the images of each sample, from the nearest on.
        title: Title of the whole sheet.
    """
    lines = -(-(len(found) + 1) // COLUMNS)
    figure, axes = make_sample_grid(query.shape[2:], lines, COLUMNS)
    cells = axes.ravel()
    show_pixels(cells[0], query, "query", "black")
    for cell, (caption, pixels) in zip(cells[1:], found, strict=False):
        show_pixels(cell, pixels, caption, HIT)
    for unused in cells[len(found) + 1 :]:
        unused.set_axis_off()
    figure.suptitle(f"{title}, each sample in {', '.join(MODALITIES)}", fontsize=10)
    picture = png_bytes(figure, SCREEN_DPI, tight=True)
    filesystems.write_atomically(*filesystems.open_root(location), picture)
