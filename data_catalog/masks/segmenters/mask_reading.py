"""Reads one mask file: a `.npy` array or a grey PNG of two values.

Nothing in a file is executed, and no file can make the reader take much memory.
"""

import io
import math
import tokenize
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stmi.images import Mask, binary_mask, refuse_frames, upright

MAX_PIXELS = 16 * 2**20
_MAX_BYTES = 8 * MAX_PIXELS + 2**16
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# A header is read as a Python literal; a damaged one can fail in the parser, the tokenizer or the type that
# it names.
_HEADER_ERRORS = (
    ValueError,
    LookupError,
    SyntaxError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)


def read_mask(path: Path) -> Mask:
    """The mask in a file, bool `(height, width)` of its own size.

    Args:
        path: A `.npy` file of bool or integers, or a 1-bit or 8-bit grey PNG; values 0 and 1, or 0 and 255.

    Raises:
        ValueError: If it holds anything else; the message is the reason, to be read after the file's name.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ValueError(f"has {size} bytes, expected at most {_MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if not data:
        raise ValueError("is empty (zero bytes)")
    values = _read_png(data) if path.suffix == ".png" else _read_npy(data)
    return binary_mask(values)


def fit_mask(mask: Mask, size: tuple[int, int], image_size: tuple[int, int] | None) -> Mask:
    """The mask at the size of its sample: the nearest pixel's value, nothing between.

    Args:
        mask: Bool `(height, width)`.
        size: Height and width of the sample.
        image_size: A size that masks may have whatever the shape of the sample.

    Raises:
        ValueError: If the mask has another shape; the message is the reason, to be read after the file's
            name.
    """
    if mask.shape == size:
        return mask
    if mask.shape != image_size and mask.shape[0] * size[1] != mask.shape[1] * size[0]:
        allowed = f", or {image_size[0]}x{image_size[1]}" if image_size else ""
        raise ValueError(
            f"is {mask.shape[0]}x{mask.shape[1]} (height x width), expected {size[0]}x{size[1]} as its "
            f"sample, that times any factor{allowed}"
        )
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _read_npy(data: bytes) -> npt.NDArray[Any]:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = _HEADER_READERS[version](stream)
    except _HEADER_ERRORS:
        raise ValueError(
            "is not a .npy file (a pickle is never read), expected an array of 0 and 1"
        ) from None
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are never read; expected an array of bool or integers")
    if dtype.kind == "f" and len(data) - stream.tell() == math.prod(shape) * dtype.itemsize:
        # `binary_mask` says how to make a mask of such values.
        shares: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        return shares
    if dtype.kind not in "biu":
        raise ValueError(f"is of type {dtype}, expected bool or integers")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"has the shape {shape}, expected (height, width)")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ValueError(f"has {shape[0] * shape[1]} pixels, expected at most {MAX_PIXELS}")
    # The header is only a claim: numpy would first take the memory for it and then find the data too short.
    if len(data) - stream.tell() != shape[0] * shape[1] * dtype.itemsize:
        raise ValueError(f"has {len(data) - stream.tell()} bytes of data, not those of shape {shape}")
    values: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return values


def _read_png(data: bytes) -> npt.NDArray[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(
                        f"has {image.width * image.height} pixels, expected at most {MAX_PIXELS}"
                    )
                if image.mode not in ("1", "L"):
                    raise ValueError(f"is a PNG of mode {image.mode}, expected 1-bit or 8-bit grey")
                refuse_frames(image)
                return np.asarray(upright(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"decodes to far more than {MAX_PIXELS} pixels, expected at most that") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded as PNG ({error})") from None
