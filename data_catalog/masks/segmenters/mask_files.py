"""Masks that people already have to the `masks` table: `.npy` arrays or PNG files, one per sample.

Where the mask of a sample lies is known by the format of its data set (`RGBNT201/<split>/mask/<name>.npy`
and so on); plain folders `<split folder>/<name>.npy|png` are taken as well. A mask is at the sample's own
size, at that size times any factor, or at the size that models are given, to which images are resized
whatever their own shape. Nothing in a file is executed, and no file can make the reader take much memory.
"""

import hashlib
import io
import math
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pydantic import BaseModel, ConfigDict

from data_catalog.cards import card_names, load_card
from data_catalog.errors import CatalogError
from data_catalog.formats import FORMATS, SourceFormat
from data_catalog.masks.mask_statistics import describe_table, file_facts
from data_catalog.masks.mask_table import MaskFinder, build_masks
from data_catalog.progress import Progress
from data_catalog.samples.images import Mask, Segmentation
from data_catalog.tables.table import Table

MAX_PIXELS = 16 * 2**20
_MAX_BYTES = 8 * MAX_PIXELS + 2**16
_SHOWN = 5
_SUFFIXES = (".npy", ".png")
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# A header is read as a Python literal, and a damaged one fails wherever the parser, the tokenizer or the type
# that it names gives up.
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


class MaskFilesSettings(BaseModel):
    """What shapes imported masks besides their files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    segmenter: Literal["files"] = "files"
    image_size: tuple[int, int] | None = None
    """Height and width that models are given: a mask of this size fits a sample of any shape."""


def import_masks(
    samples: Table,
    folder: str | Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    allow_missing: bool = False,
    true_masks: str | Path | None = None,
    progress: Progress | None = None,
) -> Table:
    """The `masks` table of a samples table, from mask files.

    Imported masks have the source `file` and the score 1. Where a sample has none that can be used, and that
    is allowed, all of it is foreground, with the source `missing` and the score 0.

    Args:
        samples: What the masks are of.
        folder: Root of the mask files; the folder that the samples came from when None.
        image_size: Height and width that models are given; as the format's card has it when None.
        allow_missing: Whether samples may be without a mask that can be used.
        true_masks: Folder of true masks to score against, as for `masks.make_masks`.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` are those of `mask_statistics.describe_table` and `coverage` (share of samples
        with a mask of their own), `missing` (samples without) and `faults` (of each its id, the file, the
        reason).

    Raises:
        CatalogError: If the folder is not there or holds no mask, or a mask is missing or cannot be used and
            that is not allowed; names the first ones.
    """
    source_format = FORMATS[samples.manifest.settings["format"]]
    card = samples.manifest.created.get("card", source_format.name)
    if image_size is None and card in card_names():
        image_size = load_card(card).image_size
    root = Path(folder if folder is not None else samples.manifest.created["source"]).resolve()
    if not root.is_dir():
        raise CatalogError(f"masks {root} is no folder on this machine; say where they are with --masks")
    finder = _FilesFinder(root, source_format, image_size)
    ids = samples.read(["sample_id"])["sample_id"].to_pylist()
    fingerprint, missing = _look(finder, ids)
    _check_faults(root, len(ids), missing, allow_missing)

    def summarise(shards: list[dict[str, Any]]) -> dict[str, Any]:
        faults = [fault for shard in shards for fault in shard["faults"]]
        _check_faults(root, len(ids), faults, allow_missing)
        return describe_table(shards) | {
            "coverage": 1 - len(faults) / len(ids),
            "missing": len(faults),
            "faults": faults,
        }

    return build_masks(
        samples,
        finder,
        settings=MaskFilesSettings(image_size=image_size).model_dump(),
        summarise=summarise,
        true_masks=true_masks,
        # Allowed or not, the same rows come out; but a table with gaps must not answer who allows none.
        key_extra={"files": fingerprint, "allow_missing": allow_missing},
        created={"masks": str(root)},
        progress=progress,
    )


def _look(finder: "_FilesFinder", ids: Sequence[str]) -> tuple[str, list[dict[str, str]]]:
    """A short-cut for the content of all mask files, and the samples that have none."""
    sha256 = hashlib.sha256()
    missing = []
    for sample_id in ids:
        path = finder.path(sample_id)
        if path is None:
            missing.append(finder.missing(sample_id))
        else:
            sha256.update(repr(file_facts(finder.root, path)).encode("utf-8", "surrogateescape"))
    return sha256.hexdigest(), missing


def _check_faults(root: Path, samples: int, faults: Sequence[dict[str, str]], allow_missing: bool) -> None:
    if not faults or (allow_missing and len(faults) < samples):
        return
    first = "; ".join(f"{fault['file']} {fault['reason']}" for fault in faults[:_SHOWN])
    otherwise = (
        "" if allow_missing else ", or pass --allow-missing to take all of such a sample for foreground"
    )
    raise CatalogError(
        f"masks {root}: {len(faults)} of {samples} samples have no mask that can be used (first: {first}); "
        f"correct the files, name another folder with --masks{otherwise}"
    )


@dataclass
class _FilesFinder(MaskFinder):
    root: Path
    source_format: SourceFormat
    image_size: tuple[int, int] | None

    def __post_init__(self) -> None:
        self.is_light = True

    def find(self, samples: pa.Table) -> tuple[list[Segmentation], list[dict[str, str]]]:
        found: list[Segmentation] = []
        faults: list[dict[str, str]] = []
        for row in samples.select(["sample_id", "height", "width"]).to_pylist():
            size = (row["height"], row["width"])
            path = self.path(row["sample_id"])
            try:
                if path is not None:
                    mask = fit_mask(read_mask(path), size, self.image_size)
                    found.append(Segmentation(mask, 1.0, "file"))
                    continue
                faults.append(self.missing(row["sample_id"]))
            except ValueError as error:
                file = str(path.relative_to(self.root)) if path else ""
                faults.append({"sample_id": row["sample_id"], "file": file, "reason": str(error)})
            found.append(Segmentation(np.ones(size, dtype=bool), 0.0, "missing"))
        return found, faults

    def path(self, sample_id: str) -> Path | None:
        """The mask file of a sample: of several the first in the order of the layouts."""
        return next((path for path in self._candidates(sample_id) if path.is_file()), None)

    def missing(self, sample_id: str) -> dict[str, str]:
        """What is told of a sample without a mask file."""
        expected = self.source_format.mask_files(sample_id)[0]
        return {"sample_id": sample_id, "file": expected, "reason": "is not there"}

    def _candidates(self, sample_id: str) -> Iterator[Path]:
        split, _, name = sample_id.partition("/")
        plain = f"{self.source_format.split_folders[split]}/{name}.npy"
        for root in (self.root, self.root / self.source_format.name.upper()):
            for file in (*self.source_format.mask_files(sample_id), plain):
                # A name may hold dots, so that `with_suffix` would cut it.
                yield from (root / f"{file.removesuffix('.npy')}{suffix}" for suffix in _SUFFIXES)


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
    if values.dtype == np.bool_:
        return values.astype(np.bool_)
    highest = 255 if values.max() == 255 else 1
    wrong = (values != 0) & (values != highest)
    if wrong.any():
        raise ValueError(f"holds the value {values[wrong][0]}, expected 0 and 1 (or 0 and 255)")
    return values != 0


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
        raise ValueError("is no .npy file (a pickle is never read), expected an array of 0 and 1") from None
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are never read; expected an array of bool or integers")
    if dtype.kind == "f" and len(data) - stream.tell() == math.prod(shape) * dtype.itemsize:
        numbers = np.load(io.BytesIO(data), allow_pickle=False)
        what = "holds NaN" if np.isnan(numbers).any() else f"is of type {dtype}"
        raise ValueError(f"{what}, expected bool or integers: save mask.astype(numpy.uint8)")
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
                return np.asarray(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"decodes to far more than {MAX_PIXELS} pixels, expected at most that") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded as PNG ({error})") from None
