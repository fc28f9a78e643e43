"""The parts of a report's page: tables, and sections of pictures; and the page made of them."""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from data_catalog.errors import CatalogError
from experiments.run.run_folder import RunFolderError
from stmi.clip.weights import ClipFileError

KINDS = {"svg": "image/svg+xml", "png": "image/png"}
PAGE_DPI = 96
PICTURE_DPI = 130
"""Of pictures with images in them: more than the page's, for fine screens and print."""
WIDE_INCHES = 7.0
"""A small screen scrolls what is wider, and shrinks the rest."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        name: File name; its ending says which format.
        caption: What is to be seen.
        data: PNG or SVG.
        inches: Its width as it was drawn, so that letters have one size in all pictures.
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
        """Whether a small screen scrolls it instead of shrinking it."""
        return self.inches > WIDE_INCHES


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: For links.
        title: Its heading.
        text: How to read it.
        pictures: As many as could be drawn.
        missing: Why there are none; None otherwise.
    """

    key: str
    title: str
    text: str
    pictures: tuple[Picture, ...]
    missing: str | None = None


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        key: For links, and of its provenance.
        cells: Its text.
        apart: Whether it is set apart from the lines above: no row of the paper.
        runs: Names of the runs that it rests on.
    """

    key: str
    cells: tuple[str, ...]
    apart: bool
    runs: tuple[str, ...]


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Attributes:
        key: For links.
        title: Its heading.
        header: Names of the columns; those that begin with `paper` are set off.
        lines: From top to bottom.
        verdict: What it shows, in words.
    """

    key: str
    title: str
    header: tuple[str, ...]
    lines: tuple[Line, ...]
    verdict: str


def section(key: str, title: str, text: str, draw: Callable[[], Iterator[Picture]]) -> Section:
    """A section with its pictures, or with the reason why they could not be drawn."""
    try:
        return Section(key, title, text, tuple(draw()))
    except (RunFolderError, CatalogError, ClipFileError, OSError) as error:
        return Section(key, title, text, (), str(error))


def as_svg(name: str, caption: str, figure: Figure) -> Picture:
    """A picture of lines and letters, sharp at any size; the same figure gives the same bytes."""
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return Picture(name, caption, out.getvalue(), figure.get_figwidth())


def as_png(name: str, caption: str, figure: Figure) -> Picture:
    """A picture with images in it."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=PICTURE_DPI)
    return Picture(name, caption, out.getvalue(), figure.get_figwidth())


def stored_png(name: str, caption: str, data: bytes) -> Picture:
    """A PNG that was drawn before."""
    image = Image.open(io.BytesIO(data))
    dots_per_inch, _ = image.info.get("dpi", (PICTURE_DPI, PICTURE_DPI))
    return Picture(name, caption, data, image.width / dots_per_inch)


def render(template: str, parts: dict[str, Any]) -> str:
    """The text of a page.

    Args:
        template: File beside this one; in an `.html.j2`, text is escaped.
        parts: What it shows.
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
    """A picture as an address that holds it."""
    kind = KINDS[picture.name.rpartition(".")[2]]
    return f"data:{kind};base64,{base64.b64encode(picture.data).decode('ascii')}"
