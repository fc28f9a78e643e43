"""Images and masks at the model's size: read and resized in one way.

The views of `data_catalog` are made with the same functions, so an image file gives the same pixels in both.
Of what a file says beside its pixels the EXIF orientation is applied. A colour profile is not, as it is not
by others who train on the published data sets.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Size = tuple[int, int]
"""Height and width, in pixels."""
ImageSource = str | Path | Image.Image | npt.NDArray[Any]
"""An image file, or an image in memory."""


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image upright, by its EXIF orientation."""

_EXIF_ERRORS = (SyntaxError, ValueError, LookupError, TypeError, OverflowError, OSError, struct.error)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, from 1 to 8; 1 (upright) where it has none that can be read."""
    if image.format == "TIFF":
        # Pillow itself gives its size and pixels upright.
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except _EXIF_ERRORS:
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def upright_size(image: Image.Image) -> Size:
    """Height and width of an image once it is upright, by its header alone."""
    size = (image.height, image.width)
    # From 5 on it lies on its side.
    return size[::-1] if orientation(image) >= 5 else size


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says that it is to be seen; every file is decoded through this."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


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
    if values.dtype.kind == "f":
        what = "holds NaN" if np.isnan(values).any() else f"is of type {values.dtype}"
        raise ValueError(f"{what}, expected bool or integers: use {_binarised(values)}")
    highest = 255 if values.max() == 255 else 1
    wrong = (values != 0) & (values != highest)
    if wrong.any():
        raise ValueError(
            f"holds the value {values[wrong][0]}, expected 0 and 1 (or 0 and 255): use {_binarised(values)}"
        )
    return values != 0


def _binarised(values: npt.NDArray[Any]) -> str:
    """Code that makes a mask of such values, for a message; `astype` alone would zero the shares."""
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    low, high = (known.min(), known.max()) if known.size else (0, 0)
    if low < 0:
        # Scores before a sigmoid.
        return "mask > 0"
    if np.isin(known, (0, 1)).all():
        return "mask == 1"
    if values.dtype.kind == "f" and high <= 1:
        return "mask >= 0.5"
    if 128 <= high <= 255:
        return "mask >= 128"
    return "mask > 0 if 0 is the background"


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
        is_deep = image.mode.startswith(("I", "F"))
        remedy = "; scale it to 8 bits as the images of training were" if is_deep else ""
        raise ValueError(f"has the Pillow mode {image.mode}, expected {allowed}{remedy}")
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
        if source.ndim != 2 or source.size == 0 or source.dtype.kind not in "buif":
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
            return upright(source)
        with Image.open(source) as image:
            refuse_frames(image)
            image.load()
            return upright(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        shown = f" {source}" if isinstance(source, str | Path) else ""
        raise ValueError(f"cannot be read as an image{shown} ({error})") from None


def refuse_frames(image: Image.Image) -> None:
    """Refuse a file of several images, of which only the first would be seen.

    Raises:
        ValueError: It is one; the message is the reason, to follow the name of the image.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"holds {frames} images ({image.format}), expected one")


def _unlike(values: npt.NDArray[Any], expected: str) -> str:
    return f"is {values.dtype} {values.shape}, expected {expected}"
