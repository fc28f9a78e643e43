"""Images of common types as the samples table stores them: colour JPEG as it is, all others as 8-bit PNG.

No pixel of 8 bits changes. One channel of more bits, as thermal cameras write it, is scaled to 8 bits by a
range that the settings of the table state.
"""

import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_catalog.samples.source_images import Size, decoded
from stmi.images import Pixels, upright, upright_size

TYPES = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
AUTO, PERCENTILE = "auto", "percentile"
_PERCENTILES = (1, 99)
_MODES = ("L", "LA", "RGB", "RGBA", "P", "PA")
_RANGE = re.compile(r"(-?\d+(?:\.\d+)?):(-?\d+(?:\.\d+)?)", re.ASCII)
_CONVERT = "`magick FILE -colorspace sRGB -alpha off -depth 8 FILE.png` converts it"


def read_range(text: str) -> str:
    """A range of raw values in its one spelling.

    Args:
        text: `auto`: each image's own lowest and highest value become 0 and 255; `percentile`: its own 1st
            and 99th percentile; `min:max`: these values in every image.

    Raises:
        ValueError: It is nothing of that.
    """
    if text in (AUTO, PERCENTILE):
        return text
    found = _RANGE.fullmatch(text)
    if found is None or float(found[1]) >= float(found[2]):
        raise ValueError(
            f"{text!r} is no range; expected {AUTO}, {PERCENTILE}, or two raw values as 7000:9500, the lower "
            "first"
        )
    return ":".join(f"{float(value):.15g}" for value in found.groups())


def store_image(data: bytes, is_grey: bool, thermal_range: str) -> tuple[bytes, Size]:
    """What the samples table stores of an image file, and its height and width once it is upright.

    Args:
        data: The file.
        is_grey: Whether it may have one channel, as NIR and TIR may.
        thermal_range: As `read_range` gives it.

    Raises:
        ValueError: It is no such image, or a damaged one; the message is the reason, to follow the file's
            name.
    """
    with decoded(data, ", ".join(TYPES)) as image:
        if image.format not in TYPES:
            raise ValueError(f"is a {image.format} file, expected {', '.join(TYPES)}: {_CONVERT}")
        # Pillow silently drops half of each of 16 bits of colour, and loading forgets that they were there.
        is_deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
        image.load()
        if image.format == "JPEG" and image.mode == "RGB":
            return data, upright_size(image)
        is_raw = image.mode == "F" or image.mode.startswith("I")
        if (is_raw or image.mode in ("L", "LA")) and not is_grey:
            raise ValueError("is greyscale, expected a colour image (three channels)")
        if not is_raw and (is_deep or image.mode not in _MODES):
            what = "16 bits a channel" if is_deep else f"the mode {image.mode}"
            raise ValueError(f"has {what}, expected 8 bits of grey or RGB: {_CONVERT}")
        stored = upright(image)
        stored = Image.fromarray(scale(np.asarray(stored), thermal_range)) if is_raw else _opaque(stored)
    sink = io.BytesIO()
    stored.save(sink, format="PNG")
    return sink.getvalue(), (stored.height, stored.width)


def scale(values: npt.NDArray[Any], thermal_range: str) -> Pixels:
    """Raw values `(height, width)` as uint8: 0 at the lower end of the range and below, 255 at the upper.

    Args:
        values: Real numbers.
        thermal_range: As `read_range` gives it.

    Raises:
        ValueError: A value is not finite.
    """
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite, expected numbers alone")
    if thermal_range == AUTO:
        low, high = values.min(), values.max()
    elif thermal_range == PERCENTILE:
        low, high = np.percentile(values, _PERCENTILES)
    else:
        low, high = map(float, thermal_range.split(":"))
    # Of one value alone nothing can be told apart.
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    return np.rint(255 * share).astype(np.uint8)


def _opaque(image: Image.Image) -> Image.Image:
    """The same pixels in mode L or RGB.

    Raises:
        ValueError: Some of them are transparent.
    """
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise ValueError(f"has transparent pixels, expected none: {_CONVERT}")
    return image.convert("L" if image.mode in ("L", "LA") else "RGB")
