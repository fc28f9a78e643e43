"""Makes the `masks` table from masks that exist already: `.npy` arrays or PNG files, one per sample.

The format of a data set says where the mask of a sample lies (`RGBNT201/<split>/mask/<name>.npy`
and so on), or its manifest does; plain folders `<split folder>/<name>.npy|png` are taken as well. A mask is
at the sample's own size, at that size times any factor, or at the size of the model's input, to which images
of any shape are resized.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from data_catalog.cards import card_names, load_card
from data_catalog.errors import CatalogError
from data_catalog.formats import SourceFormat
from data_catalog.masks.mask_statistics import MaskStatistics, describe_table, file_facts
from data_catalog.masks.mask_table import MaskMaker, build_masks
from data_catalog.masks.segmenters.mask_reading import fit_mask, read_mask
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.samples.file_contents import digest_files
from data_catalog.samples.images import Segmentation
from data_catalog.samples.layout import layout_of
from data_catalog.samples.manifest_again import read_manifest_again
from data_catalog.tables.digests import json_digest
from data_catalog.tables.shards import Statistics
from data_catalog.tables.table import Table

_SHOWN = 5
_SUFFIXES = (".npy", ".png")


class MaskFault(Record):
    """Why a sample has no mask that can be used."""

    sample_id: str
    file: str
    """The mask file, below the root of the mask files."""
    reason: str


class MaskFileStatistics(MaskStatistics):
    """Statistics of a `masks` table that was imported from files."""

    coverage: float | None = None
    """Share of samples with a mask of their own."""
    missing: int | None = None
    """Samples without one that can be used."""
    faults: list[MaskFault] | None = None
    """What is wrong with each of these."""


class MaskFilesSettings(Record):
    """What determines imported masks besides their files."""

    segmenter: Literal["files"] = "files"
    image_size: tuple[int, int] | None = None
    """Height and width of the model's input: a mask of this size fits a sample of any shape."""


def import_masks(
    samples: Table,
    folder: str | Path | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    allow_missing: bool = False,
    true_masks: str | Path | None = None,
    progress: Progress = no_progress,
) -> Table:
    """The `masks` table of a samples table, from mask files.

    Imported masks have the source `file` and the score 1. Where a sample has none that can be used, and that
    is allowed, all of it is foreground, with the source `missing` and the score 0.

    Args:
        samples: What the masks are of.
        folder: Root of the mask files, or a manifest that names them; what the samples came from when None.
        image_size: Height and width of the model's input; the card's image size when None.
        allow_missing: Whether samples may be without a mask that can be used.
        true_masks: Folder of true masks to score against, as for `mask_table.make_masks`.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` are `MaskFileStatistics`.

    Raises:
        CatalogError: If the folder is not there or holds no mask, or a mask is missing or cannot be used and
            that is not allowed; names the first ones.
    """
    source_format = layout_of(samples)
    card = samples.manifest.created.get("card", source_format.name)
    if image_size is None and card in card_names():
        image_size = load_card(card).image_size
    listing = read_manifest_again(samples, folder, "--masks")
    root = Path(folder if folder is not None else samples.manifest.created["source"]).resolve()
    if listing is not None:
        root = listing.root
    elif not root.is_dir():
        raise CatalogError(f"masks {root} is not a folder on this machine; say where they are with --masks")
    maker = _FilesMaker(samples, root, source_format, image_size, None if listing is None else listing.masks)
    ids = samples.read(["sample_id"])["sample_id"].to_pylist()
    paths = {sample_id: maker.path(sample_id) for sample_id in ids}
    missing = [maker.missing(sample_id) for sample_id, path in paths.items() if path is None]
    files = [path for path in paths.values() if path is not None]
    _check_faults(root, len(ids), missing, allow_missing)

    def summarise(shards: list[Statistics]) -> Statistics:
        faults = [fault for shard in shards for fault in shard["faults"]]
        _check_faults(root, len(ids), faults, allow_missing)
        return describe_table(shards) | {
            "coverage": 1 - len(faults) / len(ids),
            "missing": len(faults),
            "faults": faults,
        }

    return build_masks(
        maker,
        settings=MaskFilesSettings(image_size=image_size).model_dump(),
        summarise=summarise,
        true_masks=true_masks,
        # The rows do not depend on `allow_missing`, but a table with gaps must not be found without it.
        key_extra={"files": _fingerprint(root, files), "allow_missing": allow_missing},
        earlier_key_extra=lambda: {
            "files": _earlier_fingerprint(root, files),
            "allow_missing": allow_missing,
        },
        created={"masks": str(root)},
        progress=progress,
    )


def _fingerprint(root: Path, files: Sequence[Path]) -> str:
    """A digest of the names and contents of all mask files."""
    return json_digest(digest_files(root, (str(path.relative_to(root)) for path in files)))


def _earlier_fingerprint(root: Path, files: Sequence[Path]) -> str:
    """What `_fingerprint` was in earlier versions: of names, sizes and times of change."""
    sha256 = hashlib.sha256()
    for path in files:
        sha256.update(repr(file_facts(root, path)).encode("utf-8", "surrogateescape"))
    return sha256.hexdigest()


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
class _FilesMaker(MaskMaker):
    is_light = True

    root: Path
    source_format: SourceFormat
    image_size: tuple[int, int] | None
    listed: Mapping[str, str] | None
    """By sample id the files that a manifest names; None without a manifest."""

    @property
    def source_folder(self) -> Path:
        return self.root

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
        """The fault of a sample without a mask file."""
        if self.listed is None:
            expected = self.source_format.mask_files(sample_id)[0]
        elif (expected := self.listed.get(sample_id, "")) == "":
            return {"sample_id": sample_id, "file": sample_id, "reason": "has no mask in the manifest"}
        return {"sample_id": sample_id, "file": expected, "reason": "is not there"}

    def _candidates(self, sample_id: str) -> Iterator[Path]:
        if self.listed is not None:
            yield from (self.root / file for file in [self.listed.get(sample_id)] if file)
            return
        split, _, name = sample_id.partition("/")
        plain = f"{self.source_format.split_folders[split]}/{name}.npy"
        for root in (self.root, self.root / self.source_format.name.upper()):
            for file in (*self.source_format.mask_files(sample_id), plain):
                # A name may hold dots, so that `with_suffix` would cut it.
                yield from (root / f"{file.removesuffix('.npy')}{suffix}" for suffix in _SUFFIXES)
