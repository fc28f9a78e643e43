"""Decoding and encoding of the images and masks of a table."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from data_catalog.errors import CatalogError
from stmi.images import Mask, Pixels, orientation, resize_image, upright, upright_size

IMAGE_COLUMNS = ("rgb", "nir", "tir")
"""Columns of the samples table that hold the three images, in the order of MODALITIES."""

STORED = ("JPEG", "PNG")
"""Types of the files in these columns."""

SIDE_BY_SIDE_COLUMN = "side_by_side"
"""Column with the three images in one file, for data sets that are published so."""


def decode_image(data: bytes, size: tuple[int, int] | None = None) -> Pixels:
    """An image as uint8 `(height, width, channel)`, upright, and resized (bicubic) unless it has this size.

    Args:
        data: A file as the samples table stores it: JPEG, or PNG of mode L or RGB.
        size: Height and width of the result; those of the image when None.
    """
    with Image.open(io.BytesIO(data), formats=STORED) as image:
        shown = upright(image)
        return resize_image(
            shown if shown.mode == "RGB" else shown.convert("RGB"), size or upright_size(image)
        )


def is_upright(data: bytes) -> bool:
    """Whether the file of an image shows it as `decode_image` does, by its EXIF orientation."""
    with Image.open(io.BytesIO(data), formats=STORED) as image:
        return orientation(image) == 1


def decode_triplets(samples: pa.Table, size: tuple[int, int] | None = None) -> list[Pixels]:
    """The three images of every row of a samples table, uint8 `(modality, height, width, channel)` each.

    Those that a sample lacks are zeros (see `missing_images`).

    Args:
        samples: Rows with the image columns.
        size: Height and width of each image of the result; their own when None.

    Raises:
        CatalogError: If the images of a sample have different sizes, in a table of an earlier version.
    """
    columns = [samples[name].to_pylist() for name in (*IMAGE_COLUMNS, SIDE_BY_SIDE_COLUMN)]
    return [
        _stacked([None if data is None else decode_image(data, size) for data in files])
        if joined is None
        else _cut(joined, size)
        for *files, joined in zip(*columns, strict=True)
    ]


def missing_images(samples: pa.Table) -> Mask:
    """Which images the rows of a samples table lack, bool `(samples, modality)`."""
    if samples.num_rows == 0 or samples[SIDE_BY_SIDE_COLUMN].null_count < samples.num_rows:
        return np.zeros((samples.num_rows, len(IMAGE_COLUMNS)), dtype=bool)
    return np.stack([samples[name].is_null().to_numpy() for name in IMAGE_COLUMNS], axis=1)


def blank_like(data: bytes) -> bytes:
    """The file of a black image of the size of another, to show where a sample lacks one."""
    sink = io.BytesIO()
    Image.fromarray(np.zeros(decode_image(data).shape[:2], dtype=np.uint8)).save(sink, format="PNG")
    return sink.getvalue()


def _stacked(found: Sequence[Pixels | None]) -> Pixels:
    blank = np.zeros_like(next(image for image in found if image is not None))
    images = [blank if image is None else image for image in found]
    if len({image.shape for image in images}) > 1:
        sizes = ", ".join(f"{image.shape[0]}x{image.shape[1]}" for image in images)
        raise CatalogError(
            f"images of one sample are {sizes} (height x width) as their EXIF orientation shows them, which "
            "earlier versions ignored; delete the folder of the samples table and ingest again"
        )
    return np.stack(images)


def _cut(data: bytes, size: tuple[int, int] | None) -> Pixels:
    """The three images that stand side by side in a JPEG, uint8 `(modality, height, width, channel)`."""
    joined = decode_image(data)
    height, width = joined.shape[0], joined.shape[1] // len(IMAGE_COLUMNS)
    images = joined.reshape(height, len(IMAGE_COLUMNS), width, 3).transpose(1, 0, 2, 3)
    if size is None or (height, width) == size:
        return images
    # Resized after the cut, because otherwise pixels at the seam would mix two modalities.
    return np.stack([resize_image(Image.fromarray(image), size) for image in images])


def encode_mask(mask: Mask) -> bytes:
    """A mask `(height, width)` as a 1-bit PNG, white where it is true."""
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, format="PNG")
    return sink.getvalue()


def decode_mask(data: bytes) -> Mask:
    """The mask `(height, width)` in a PNG file: true where a pixel is at least half white.

    Raises:
        ValueError: If the file holds no image.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image.convert("L")) >= 128


def intersection_over_union(mask: Mask, truth: Mask) -> float:
    """Overlap of two masks of one shape, 0 to 1; two empty masks agree fully."""
    union = np.count_nonzero(mask | truth)
    return 1.0 if union == 0 else np.count_nonzero(mask & truth) / union


@dataclass(frozen=True)
class Segmentation:
    """The mask of a sample.

    Attributes:
        mask: Bool `(height, width)`, true on the person or vehicle.
        score: Confidence of the segmenter, 0 to 1.
        source: What it was found in: a modality, or how several were combined.
    """

    mask: Mask
    score: float
    source: str
