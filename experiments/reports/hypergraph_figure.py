"""Which nodes of CHI's hypergraph meet in which hyperedges, for some samples: a picture."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from data_catalog.views.view_reader import View, open_view
from experiments.evaluating import evaluation_target
from experiments.evaluating.evaluation_target import EvaluationTarget
from experiments.figure_style import BLUE, GREEN, GREY, ORANGE, PINK, RED, plain
from experiments.reports.attention_figures import spread_queries
from experiments.run import evaluation
from experiments.run.run_folder import RunFolder
from stmi.modality import MODALITIES

SAMPLES = 4
CIRCLE = 60
"""More nodes than this are no circle that one can read; their incidence is shown as a matrix."""
ACROSS, WITHIN, TEXT = BLUE, GREY, ORANGE
COLOURS = (RED, PINK, GREEN)
"""Colours of the nodes of each modality."""


def plot_run(folder: RunFolder) -> Figure | None:
    """The hypergraphs of some test queries of a finished run, after its last epoch; None where it has none.

    Raises:
        stmi.TrainedRunError: Its weights or its CLIP are not there.
        data_catalog.errors.CatalogError: Its test view is not there.
    """
    target = evaluation_target.load_run(folder, catalog=folder.catalog, epoch="last")
    if target.model.incidence is None:
        return None
    view = open_view(target.table)
    return plot_hypergraphs(target, view, spread_queries(view, SAMPLES))


@torch.no_grad()
def sample_incidence(target: EvaluationTarget, view: View, rows: np.ndarray) -> np.ndarray:
    """Which node is in which hyperedge, boolean `(samples, nodes, hyperedges)`.

    Args:
        target: A run whose model has a hypergraph.
        view: The view of the samples.
        rows: Rows of the view.
    """
    model = target.model
    inputs = evaluation.model_input(model, view, rows, model.image_tower.proj.device, target.captions)
    with torch.autocast(inputs.images.device.type, torch.bfloat16, enabled=target.autocast):
        hypergraph = model(inputs).hypergraph
    assert hypergraph is not None
    return hypergraph.incidence.cpu().numpy()


def plot_hypergraphs(target: EvaluationTarget, view: View, rows: np.ndarray) -> Figure:
    """Samples in their modalities, and below each which of its nodes share a hyperedge.

    Two nodes are joined by a line where one is in the hyperedge of the other.
    """
    config = target.config.model
    has_text_copies = config.str.enabled and config.text.enabled
    found = sample_incidence(target, view, rows)
    # Copies of the text token that are left out of the hypergraph are drawn, and not counted.
    assert target.model.incidence is not None
    kept = target.model.incidence.kept
    height, width = view.image_size
    strip = 2.6 * height / (width * len(MODALITIES))
    figure = Figure(figsize=(2.8 * len(rows), strip + 3.6), layout="constrained")
    above, below = figure.subplots(2, len(rows), squeeze=False, height_ratios=(strip, 2.8))
    for column, row in enumerate(rows):
        pixels = view.batch([row]).pixels[0].transpose(0, 2, 3, 1)
        above[column].imshow(np.concatenate(list(pixels), axis=1), interpolation="nearest")
        above[column].set_title(f"{plain(view.sample_id[row])}\n{', '.join(MODALITIES)}", fontsize=8)
        if found.shape[1] <= CIRCLE:
            _draw_circle(below[column], found[column], has_text_copies)
        else:
            below[column].imshow(found[column], cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        mean = found[column][np.ix_(kept, kept)].sum(axis=0).mean()
        below[column].set_title(f"{mean:.1f} of {len(kept)} nodes\nin a hyperedge", fontsize=8)
        for axes in (above[column], below[column]):
            axes.set(xticks=[], yticks=[], frame_on=False)
    if found.shape[1] <= CIRCLE:
        _add_legend(figure, has_text_copies)
    return figure


def _draw_circle(axes: Axes, incidence: np.ndarray, has_text_copies: bool) -> None:
    """The nodes on a circle, an arc for each modality, and lines between those that meet."""
    each = len(incidence) // len(MODALITIES)
    # A gap between the arcs; a text token of no modality stands in the middle.
    step = 2 * np.pi / (len(MODALITIES) * (each + 1))
    angles = [step * (node + node // each + 0.5) for node in range(len(MODALITIES) * each)]
    position = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    position = np.concatenate([position, np.zeros((len(incidence) - len(angles), 2))])
    nodes = range(len(incidence))
    is_text = [node >= len(angles) or (has_text_copies and node % each == each - 1) for node in nodes]
    meets = (incidence | incidence.T) & ~np.eye(len(incidence), dtype=bool)
    for one, other in np.argwhere(np.triu(meets)):
        is_within = one // each == other // each
        colour = TEXT if is_text[one] or is_text[other] else WITHIN if is_within else ACROSS
        axes.plot(*position[[one, other]].T, color=colour, linewidth=1.2, zorder=1)
    for node, point in enumerate(position):
        colour = TEXT if node >= len(angles) else COLOURS[node // each]
        axes.plot(
            *point,
            "s" if is_text[node] else "o",
            color=colour,
            markerfacecolor=colour if meets[node].any() else "white",
            markersize=9,
            zorder=2,
        )
    for number, name in enumerate(MODALITIES):
        angle = step * (number * (each + 1) + each / 2)
        axes.text(1.3 * np.sin(angle), 1.3 * np.cos(angle), name, ha="center", va="center", fontsize=8)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")


def _add_legend(figure: Figure, has_text_copies: bool) -> None:
    def mark(label: str, marker: str, face: str) -> Line2D:
        return Line2D([], [], marker=marker, color="black", markerfacecolor=face, linestyle="", label=label)

    def line(label: str, colour: str) -> Line2D:
        return Line2D([], [], color=colour, label=label)

    text = "copy of the text token" if has_text_copies else "text token"
    handles = [
        mark("token of an image", "o", "black"),
        mark(text, "s", "black"),
        mark("hollow: alone in its hyperedge", "o", "white"),
        line("meet across modalities", ACROSS),
        line("meet within a modality", WITHIN),
        line("meet by the text", TEXT),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
