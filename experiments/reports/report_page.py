"""The parts of a report's page, which are tables and sections with pictures, and how it is rendered."""

import base64
import io
import mimetypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from data_catalog.errors import CatalogError
from experiments.figure_style import DOTS_PER_INCH, png_bytes
from experiments.run.run_folder import RunFolderError
from stmi.errors import ClipFileError, TrainedRunError

PAGE_DPI = 96
WIDE_INCHES = 7.0
"""A small screen scrolls wider pictures, and shrinks the others."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        name: File name, whose suffix names the format.
        caption: Description.
        data: PNG or SVG.
        inches: Width of the figure, so that text has the same size in all pictures.
    """

    name: str
    caption: str
    data: bytes
    inches: float

    @property
    def width(self) -> int:
        """Width on a page, in pixels."""
        return round(self.inches * PAGE_DPI)

    @property
    def wide(self) -> bool:
        """Whether a small screen scrolls the picture instead of shrinking it."""
        # A PNG stores whole dots per metre, so its width in inches is not exact.
        return self.width > WIDE_INCHES * PAGE_DPI


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: For links.
        title: Heading.
        text: How to read the pictures.
        pictures: May be empty.
        missing: The reason why there are no pictures; None otherwise.
    """

    key: str
    title: str
    text: str
    pictures: tuple[Picture, ...]
    missing: str | None = None


@dataclass(frozen=True)
class PageRow:
    """A row of a table on the page.

    Attributes:
        key: For links, also to its provenance.
        cells: Text.
        separate: Whether a line separates it from the rows above, because the paper has no such row.
        runs: Names of the runs that its numbers come from.
    """

    key: str
    cells: tuple[str, ...]
    separate: bool
    runs: tuple[str, ...]


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Attributes:
        key: For links.
        title: Heading.
        header: Names of the columns; those that begin with `paper` have a colour of their own.
        rows: From top to bottom.
        verdict: Summary in words.
    """

    key: str
    title: str
    header: tuple[str, ...]
    rows: tuple[PageRow, ...]
    verdict: str


def make_section(key: str, title: str, text: str, draw: Callable[[], Iterator[Picture]]) -> Section:
    """A section with its pictures, or with the reason why they cannot be drawn."""
    try:
        return Section(key, title, text, tuple(draw()))
    except (RunFolderError, TrainedRunError, CatalogError, ClipFileError, OSError) as error:
        return Section(key, title, text, (), str(error))


def as_svg(name: str, caption: str, figure: Figure) -> Picture:
    """A figure of lines and text as SVG; the same figure gives the same bytes."""
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return Picture(name, caption, out.getvalue(), figure.get_figwidth())


def as_png(name: str, caption: str, figure: Figure) -> Picture:
    """A figure that contains images as PNG."""
    return Picture(name, caption, png_bytes(figure), figure.get_figwidth())


def stored_png(name: str, caption: str, data: bytes) -> Picture:
    """An existing PNG."""
    image = Image.open(io.BytesIO(data))
    dots_per_inch, _ = image.info.get("dpi", (DOTS_PER_INCH, DOTS_PER_INCH))
    return Picture(name, caption, data, image.width / dots_per_inch)


def render(template: str, parts: dict[str, Any]) -> str:
    """The text of a page.

    Args:
        template: File in this folder; text is escaped in an `.html.j2`.
        parts: Variables of the template.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment.get_template(template).render(parts)


def data_uri(picture: Picture) -> str:
    """A picture as a data URI."""
    kind, _ = mimetypes.guess_type(picture.name)
    return f"data:{kind};base64,{base64.b64encode(picture.data).decode('ascii')}"
