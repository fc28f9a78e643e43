"""Statistics of a masks table: how much is foreground, which sources were used, the overlap with true masks.

A shard has sums and counts, so that nothing grows with the data set but the lists of samples to look at.
"""

import io
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from data_catalog.errors import CatalogError
from data_catalog.records import Record
from data_catalog.samples.file_contents import digest_files
from data_catalog.samples.images import (
    Mask,
    Segmentation,
    decode_triplets,
    intersection_over_union,
)
from data_catalog.tables.shards import Statistics
from stmi.images import read_mask
from stmi.modality import MODALITIES, Modality

STATISTICS_VERSION = 2
"""Raised when the statistics change, so that shards with the old ones are not joined with others."""

_RGB = MODALITIES.index(Modality.RGB)

LOWEST = 20
"""How many samples of lowest score a table's statistics name."""


@dataclass(frozen=True)
class TrueMasks:
    """Masks to score against; they do not change the masks that are scored.

    Attributes:
        root: Folder of `<split folder>/<name>.png`.
        split_folders: The folder of each split.
        files: The PNG file of each sample, once they are loaded: another machine may lack the folder.
    """

    root: Path
    split_folders: Mapping[str, str]
    files: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)

    def check(self) -> None:
        """Make sure that there are any.

        Raises:
            CatalogError: If there is no folder of a split.
        """
        if not any((self.root / folder).is_dir() for folder in self.split_folders.values()):
            raise CatalogError(
                f"true masks {self.root} holds no folder of a split; expected "
                f"{', '.join(self.split_folders.values())} with one PNG per sample"
            )

    def fingerprint(self) -> dict[str, str]:
        """The names of the files, and what stands for the content of each."""
        return digest_files(self.root, (str(file.relative_to(self.root)) for file in self._files()))

    def earlier_fingerprint(self) -> list[list[Any]]:
        """What `fingerprint` was in earlier versions: names, sizes and times of change."""
        return [file_facts(self.root, file) for file in self._files()]

    def _files(self) -> list[Path]:
        folders = sorted(self.split_folders.values())
        return [file for folder in folders for file in sorted((self.root / folder).rglob("*.png"))]

    def load(self) -> None:
        """Read the files.

        Raises:
            CatalogError: If one cannot be read.
        """
        for split, folder in self.split_folders.items():
            for path in (self.root / folder).rglob("*.png"):
                name = path.relative_to(self.root / folder).with_suffix("")
                try:
                    self.files[f"{split}/{name}"] = path.read_bytes()
                except OSError as error:
                    raise _unreadable(path, error) from None

    def read(self, sample_id: str, shape: tuple[int, ...]) -> Mask | None:
        """The true mask of a sample, or None where it has none.

        Raises:
            CatalogError: If it is no PNG file or not of this shape.
        """
        if sample_id not in self.files:
            return None
        split, _, name = sample_id.partition("/")
        path = self.root / self.split_folders[split] / f"{name}.png"
        try:
            with Image.open(io.BytesIO(self.files[sample_id]), formats=("PNG",)) as image:
                mask = read_mask(image)
        except ValueError as error:
            raise CatalogError(f"true mask {path} {error}") from None
        except OSError as error:
            raise _unreadable(path, error) from None
        if mask.shape != shape:
            raise CatalogError(f"true mask {path} is {mask.shape}, expected the size of its sample, {shape}")
        return mask


def _unreadable(path: Path, error: Exception) -> CatalogError:
    return CatalogError(f"true mask {path} cannot be read ({error}); expected a PNG")


def file_facts(root: Path, file: Path) -> list[Any]:
    """What stood for a file in earlier versions: path, size and time of change; -1 if it cannot be read."""
    status = file.stat()
    facts = [status.st_size, status.st_mtime_ns] if os.access(file, os.R_OK) else [-1, -1]
    return [str(file.relative_to(root)), *facts]


def describe_shard(samples: pa.Table, found: Sequence[Segmentation], truth: TrueMasks | None) -> Statistics:
    """Statistics of the masks of a shard, as JSON values for `describe_table`.

    Args:
        samples: Rows of the samples table.
        found: Their masks.
        truth: Masks to score them against.

    Raises:
        CatalogError: If a true mask cannot be read or has another size.
    """
    ids: list[str] = samples["sample_id"].to_pylist()
    cameras = [str(camera_id) for camera_id in samples["camera_id"].to_pylist()]
    sources: dict[str, Counter[str]] = {}
    for camera, segmentation in zip(cameras, found, strict=True):
        sources.setdefault(camera, Counter())[segmentation.source] += 1
    ranked = sorted(
        (segmentation.score, sample_id) for segmentation, sample_id in zip(found, ids, strict=True)
    )
    return {
        "samples": len(ids),
        "foreground": sum(float(segmentation.mask.mean()) for segmentation in found),
        "score": sum(segmentation.score for segmentation in found),
        "lowest": ranked[:LOWEST],
        "empty": [name for name, one in zip(ids, found, strict=True) if not one.mask.any()],
        "full": [name for name, one in zip(ids, found, strict=True) if one.mask.all()],
        "sources": sources,
        "overlaps": {} if truth is None else _overlaps(samples, ids, cameras, found, truth),
    }


def _overlaps(
    samples: pa.Table,
    ids: Sequence[str],
    cameras: Sequence[str],
    found: Sequence[Segmentation],
    truth: TrueMasks,
) -> dict[str, dict[str, Any]]:
    """For each camera the sums of overlap and brightness in visible light, and the number of its samples."""
    overlaps: dict[str, dict[str, Any]] = {}
    for row, (sample_id, camera, segmentation) in enumerate(zip(ids, cameras, found, strict=True)):
        true_mask = truth.read(sample_id, segmentation.mask.shape)
        if true_mask is not None:
            sums = overlaps.setdefault(camera, {"iou": 0.0, "brightness": 0.0, "samples": 0})
            sums["iou"] += intersection_over_union(segmentation.mask, true_mask)
            [triplet] = decode_triplets(samples.slice(row, 1))
            sums["brightness"] += float(np.mean(triplet[_RGB])) / 255
            sums["samples"] += 1
    return overlaps


class SampleScore(Record):
    """The score of a sample's mask."""

    sample_id: str
    score: float


class MaskStatistics(Record):
    """Statistics of a `masks` table."""

    foreground_fraction: float | None
    """Mean share of foreground; None without samples."""
    score: float | None
    """Mean score, 0 to 1; None without samples."""
    empty: int
    """Masks that are all background."""
    full: int
    """Masks that are all foreground."""
    empty_samples: list[str]
    full_samples: list[str]
    lowest_scores: list[SampleScore]
    """The samples of lowest score, at most LOWEST."""
    sources_by_camera: dict[str, dict[str, int]]
    """Number of samples, by camera and source."""
    mean_iou: float | None = None
    """Mean overlap with the true masks; this and what follows is None where there are none."""
    mean_iou_by_camera: dict[str, float] | None = None
    brightness_by_camera: dict[str, float] | None = None
    """Mean brightness of RGB by camera, 0 to 1; low for a camera at night."""
    scored: int | None = None
    """Samples that have a true mask."""


def describe_table(shards: Sequence[Statistics]) -> Statistics:
    """Statistics of a masks table from its shards: a dump of `MaskStatistics` without what does not apply.

    Args:
        shards: What `describe_shard` gave for each.

    Raises:
        CatalogError: If every mask is all background or all foreground.
    """
    samples = sum(shard["samples"] for shard in shards)
    empty = [name for shard in shards for name in shard["empty"]]
    full = [name for shard in shards for name in shard["full"]]
    if samples and all(map(tells_nothing, shards)):
        raise CatalogError(
            f"all {samples} masks are of one value ({len(empty)} all background, {len(full)} all foreground; "
            f"first: {(empty + full)[0]}), so no table is made of them; see to the segmenter or the files "
            "and run the same command again, or do without masks (`view --no-masks`)"
        )
    lowest = sorted((score, name) for shard in shards for score, name in shard["lowest"])[:LOWEST]
    sources: dict[str, Counter[str]] = {}
    overlaps: dict[str, Counter[str]] = {}
    for shard in shards:
        for camera, counts in shard["sources"].items():
            sources.setdefault(camera, Counter()).update(counts)
        for camera, sums in shard["overlaps"].items():
            overlaps.setdefault(camera, Counter()).update(sums)
    statistics = MaskStatistics(
        foreground_fraction=_mean(sum(shard["foreground"] for shard in shards), samples),
        score=_mean(sum(shard["score"] for shard in shards), samples),
        empty=len(empty),
        full=len(full),
        empty_samples=empty,
        full_samples=full,
        lowest_scores=[SampleScore(sample_id=name, score=score) for score, name in lowest],
        sources_by_camera={camera: dict(sorted(sources[camera].items())) for camera in _by_number(sources)},
    ).model_dump(exclude_unset=True)
    if not overlaps:
        return statistics
    total: Counter[str] = Counter()
    for sums in overlaps.values():
        total.update(sums)

    def by_camera(name: str) -> dict[str, float]:
        return {
            camera: overlaps[camera][name] / overlaps[camera]["samples"] for camera in _by_number(overlaps)
        }

    return statistics | {
        "mean_iou": total["iou"] / total["samples"],
        "mean_iou_by_camera": by_camera("iou"),
        "brightness_by_camera": by_camera("brightness"),
        "scored": total["samples"],
    }


def tells_nothing(shard: Mapping[str, Any]) -> bool:
    """Whether every mask of a shard is all background or all foreground, by what `describe_shard` gave."""
    return len(shard["empty"]) + len(shard["full"]) == int(shard["samples"])


def _by_number(cameras: Collection[str]) -> list[str]:
    return sorted(cameras, key=int)


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
