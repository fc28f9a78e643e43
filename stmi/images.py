"""Images and masks at the model's size: read and resized in one way.

The views of `data_catalog` are made with the same functions, so an image file gives the same pixels in both.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Size = tuple[int, int]
"""Height and width, in pixels."""
ImageSource = str | Path | Image.Image | npt.NDArray[Any]
"""An image file, or an image in memory."""


def resize_image(image: Image.Image, size: Size) -> Pixels:
    """An image as uint8 `(height, width, channel)`, resized (bicubic) unless it has this size."""
    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)


def foreground_share(mask: Mask, size: Size) -> Pixels:
    """Share of foreground in each pixel at another size, uint8 `(height, width)`, 255 for all of it.

    Averages over the area of each new pixel.
    """
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    if mask.shape != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(image)


def binary_mask(values: npt.NDArray[Any]) -> Mask:
    """Numbers or booleans as a mask.

    Raises:
        ValueError: There are other values than 0 and 1, or 0 and 255; the message is the reason, to follow
            the name of the mask.
    """
    if values.dtype == np.bool_:
        return values.astype(np.bool_)
    highest = 255 if values.max() == 255 else 1
    wrong = (values != 0) & (values != highest)
    if wrong.any():
        raise ValueError(f"holds the value {values[wrong][0]}, expected 0 and 1 (or 0 and 255)")
    return values != 0


def read_image(source: ImageSource, size: Size, grey: bool) -> tuple[Pixels, Size]:
    """An image at another size, and its own size.

    Args:
        source: A file that Pillow reads, a Pillow image of mode RGB, or uint8 `(height, width, 3)`.
        size: Height and width of the result.
        grey: Also allow mode L, `(height, width)` and `(height, width, 1)`: the one channel is repeated.

    Returns:
        uint8 `(height, width, 3)`, and the height and width before it was resized.

    Raises:
        ValueError: It is something else, or a damaged file; the message is the reason, to follow the name of
            the image.
    """
    image = _opened(source)
    if grey and image.mode == "L":
        image = image.convert("RGB")
    if image.mode != "RGB":
        allowed = "RGB, or L for grey" if grey else "RGB; a grey image can only be NIR or TIR"
        raise ValueError(f"has the Pillow mode {image.mode}, expected {allowed}")
    return resize_image(image, size), (image.height, image.width)


def read_mask(source: ImageSource) -> Mask:
    """A mask of its own size, bool `(height, width)`.

    Args:
        source: A grey image file or Pillow image, or an array `(height, width)`, of two values: false and
            true, 0 and 1, or 0 and 255.

    Raises:
        ValueError: It is something else, or a damaged file; the message is the reason, to follow the name of
            the mask.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 2 or source.size == 0 or source.dtype.kind not in "bui":
            raise ValueError(_unlike(source, "bool or uint8 (height, width)"))
        return binary_mask(source)
    image = _opened(source)
    if image.mode not in ("1", "L"):
        raise ValueError(f"has the Pillow mode {image.mode}, expected 1 or L (black and white)")
    return binary_mask(np.asarray(image))


def _opened(source: ImageSource) -> Image.Image:
    """A decoded image."""
    if isinstance(source, np.ndarray):
        values = source[..., 0] if source.ndim == 3 and source.shape[2] == 1 else source
        is_image = values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3)
        if values.dtype != np.uint8 or values.size == 0 or not is_image:
            raise ValueError(_unlike(source, "uint8 (height, width, 3)"))
        return Image.fromarray(values)
    if not isinstance(source, str | Path | Image.Image):
        kind = type(source).__name__
        raise ValueError(f"is of type {kind}, expected a path, a Pillow image or a numpy array")
    try:
        if isinstance(source, Image.Image):
            source.load()
            return source
        with Image.open(source) as image:
            image.load()
            return image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        shown = f" {source}" if isinstance(source, str | Path) else ""
        raise ValueError(f"cannot be read as an image{shown} ({error})") from None


def _unlike(values: npt.NDArray[Any], expected: str) -> str:
    return f"is {values.dtype} {values.shape}, expected {expected}"
