"""The drawing of a contact sheet: one cell per sample, cells side by side, a title above."""

import io
import textwrap
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from data_catalog.inspect.glyphs import Font, legible
from data_catalog.samples.images import Mask, Pixels
from stmi.modality import MODALITIES

Colour = tuple[int, int, int]

LONG_SIDE = 224
"""Longer side of an image on the sheet, pixels."""

_SHEET_WIDTH = 1920
_GAP, _MARGIN = 6, 16
_TEXT, _TITLE = 14, 18
_LINE = 18
_CAPTION_LINES = 4
_PAPER: Colour = (250, 250, 250)
_INK: Colour = (20, 20, 20)
_FAINT: Colour = (110, 110, 110)
_OUTLINE: Colour = (0, 255, 80)
_HALO: Colour = (0, 0, 0)
_DIM = 0.4
"""Brightness of background tokens, as a share of the original."""


@dataclass(frozen=True)
class Cell:
    """What a cell of the sheet shows: one sample.

    Attributes:
        name: Its id.
        labels: Other text above the images.
        triplet: Its images, uint8 `(modality, height, width, channel)`.
        mask: Bool `(height, width)`, or None.
        tokens: Foreground tokens, bool `(rows, columns)`, or None.
        caption: Or None.
    """

    name: str
    labels: str
    triplet: Pixels
    mask: Mask | None
    tokens: Mask | None
    caption: str | None


def draw_cell(cell: Cell) -> Image.Image:
    """The picture of one sample."""
    images = outlined_images(cell.triplet, cell.mask, LONG_SIDE)
    size = images[0].shape[:2]
    panels = [(modality.value, image) for modality, image in zip(MODALITIES, images, strict=True)]
    if cell.tokens is not None:
        panels.append(("tokens", _tokens(_enlarge(_mean_image(cell.triplet), size), cell.tokens)))
    columns = len(MODALITIES) + 1
    inner = columns * size[1] + (columns - 1) * _GAP
    caption, caption_font = _wrapped(cell.caption, inner)
    picture = Image.new("RGB", (inner, 3 * _LINE + size[0] + _GAP + len(caption) * _LINE), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (line, colour) in enumerate(((cell.name, _INK), (cell.labels, _FAINT))):
        text, font = legible(line, _TEXT)
        draw.text((0, number * _LINE), _fit(text, inner, font), colour, font)
    for number, (label, pixels) in enumerate(panels):
        left = number * (size[1] + _GAP)
        draw.text((left, 2 * _LINE), label, _FAINT, ImageFont.load_default(_TEXT))
        picture.paste(Image.fromarray(pixels), (left, 3 * _LINE))
    for number, line in enumerate(caption):
        draw.text((0, 3 * _LINE + size[0] + _GAP + number * _LINE), line, _INK, caption_font)
    return picture


def outlined_images(triplet: Pixels, mask: Mask | None, long_side: int) -> list[Pixels]:
    """The image of each modality with the outline of the mask.

    Args:
        triplet: Images of a sample, uint8 `(modality, height, width, channel)`.
        mask: Bool `(height, width)`, or None.
        long_side: Longer side of each image of the result, pixels.
    """
    height, width = triplet.shape[1:3]
    scale = long_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return [_outlined(_enlarge(image, size), mask) for image in triplet]


def arrange(cells: Sequence[Image.Image], title: str) -> Image.Image:
    """The sheet: a title and the cells in rows, as many beside each other as fit.

    Args:
        cells: At least one.
        title: Text at the top.
    """
    width = max(cell.width for cell in cells) + 2 * _MARGIN
    columns = max(1, min(len(cells), _SHEET_WIDTH // width))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + _MARGIN for row in rows]
    title, font = legible(title, _TITLE)
    lines = textwrap.wrap(title, max(20, columns * width * 2 // _TITLE))
    top = _MARGIN + len(lines) * (_TITLE + _GAP) + _GAP
    sheet = Image.new("RGB", (columns * width, top + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * (_TITLE + _GAP)), line, _INK, font)
    for row, height in zip(rows, heights, strict=True):
        draw.line([(_MARGIN, top - _GAP), (sheet.width - _MARGIN, top - _GAP)], (215, 215, 215))
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * width + _MARGIN, top))
        top += height
    return sheet


def encode_png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    sink = io.BytesIO()
    picture.save(sink, format="PNG")
    return sink.getvalue()


def _enlarge(image: Pixels, size: tuple[int, int]) -> Pixels:
    resampling = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), resampling))


def _outlined(image: Pixels, mask: Mask | None) -> Pixels:
    """The image with the mask's outline, bright on a dark halo, so that it is visible on any background."""
    if mask is None:
        return image
    import cv2  # noqa: PLC0415 - takes long to import, which other commands and `--help` need not pay

    height, width = image.shape[:2]
    enlarged = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    contours, _ = cv2.findContours(
        np.asarray(enlarged).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    drawn = np.ascontiguousarray(image).copy()
    cv2.drawContours(drawn, contours, -1, _HALO, 3)
    cv2.drawContours(drawn, contours, -1, _OUTLINE, 1)
    return drawn


def _mean_image(triplet: Pixels) -> Pixels:
    """The mean of all modalities in grey, stretched from its 1st to its 99th percentile."""
    grey: npt.NDArray[np.float64] = triplet.mean(axis=(0, 3))
    low, high = np.percentile(grey, (1, 99))
    stretched = np.clip((grey - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8)
    return np.repeat(stretched[..., None], 3, axis=2)


def _tokens(image: Pixels, tokens: Mask) -> Pixels:
    """The image with background tokens dark, foreground tokens tinted, and the grid between them."""
    height, width = image.shape[:2]
    rows = np.arange(height) * tokens.shape[0] // height
    columns = np.arange(width) * tokens.shape[1] // width
    foreground = tokens[rows][:, columns][..., None]
    tint = np.array(_OUTLINE, dtype=np.float64)
    drawn = np.where(foreground, 0.8 * image + 0.2 * tint, _DIM * image)
    edges = np.zeros((height, width), dtype=bool)
    edges[1:] |= (np.diff(rows) > 0)[:, None]
    edges[:, 1:] |= (np.diff(columns) > 0)[None]
    drawn[edges] = 0.7 * drawn[edges] + 0.3 * 128
    return np.asarray(drawn.astype(np.uint8))


def _fit(text: str, width: int, font: Font) -> str:
    """The text, shortened to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    ends = range(len(text))
    too_wide = bisect_left(ends, True, key=lambda end: font.getlength(text[:end] + "...") > width)
    return text[: max(0, too_wide - 1)] + "..."


def _wrapped(caption: str | None, width: int) -> tuple[list[str], Font]:
    """The caption in lines of a width in pixels, the last one with dots if it was shortened; and its font."""
    text, font = legible(" ".join((caption or "").split()), _TEXT)
    if caption is None:
        return [], font
    lines = [""]
    for word in text.split() or ["(empty", "caption)"]:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines += _broken(word, width, font)
    lines = [line for line in lines if line]
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], " ".join(lines[_CAPTION_LINES - 1 :])]
    return [_fit(line, width, font) for line in lines], font


def _broken(word: str, width: int, font: Font) -> list[str]:
    """A word in pieces of a width in pixels: Chinese has no spaces."""
    pieces = [""]
    for character in word:
        if pieces[-1] and font.getlength(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces
