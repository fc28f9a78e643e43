"""Makes the rows of the samples table: reads the files of each sample, and checks and measures them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_catalog.formats import QUERY_SUFFIX, SIDE_BY_SIDE, Rejected
from data_catalog.samples.any_image import store_image
from data_catalog.samples.source_images import (
    Size,
    describe_turn,
    failing_disk_ends_ingest,
    image_size,
    read_source,
    width_side_by_side,
)
from data_catalog.tables.schemas import SAMPLES_SCHEMA
from data_catalog.tables.shards import ShardMaker, Statistics
from stmi.modality import MODALITIES, Modality


def sample_digest(*files: bytes) -> str:
    """SHA-256 over the files of a sample, each preceded by its length (8 bytes, big-endian)."""
    sha256 = hashlib.sha256()
    for data in files:
        sha256.update(len(data).to_bytes(8, "big"))
        sha256.update(data)
    return sha256.hexdigest()


@dataclass(frozen=True)
class SamplesMaker(ShardMaker[list[dict[str, Any]]]):
    """Reads the files of samples.

    Attributes:
        root: Below which they lie.
        size: What every image must have; None for any size.
        unread: By sample id, the files that could be its missing images; to follow a message.
        thermal_range: As `any_image.read_range` gives it, for images of any type; None for colour JPEG alone.
        allow_missing: Whether a sample may lack images.
    """

    is_light = True

    root: Path
    size: Size | None
    unread: Mapping[str, str]
    thermal_range: str | None = None
    allow_missing: bool = False

    @property
    def source_folder(self) -> Path:
        """Below which the files lie."""
        return self.root

    def is_final(self, statistics: Mapping[str, Any]) -> bool:
        """Whether a shard is as this version makes it."""
        # Earlier versions made no samples of queries alone, and so cut the shards elsewhere.
        return "separate" in statistics

    def make(self, spec: list[dict[str, Any]]) -> tuple[pa.Table, Statistics]:
        """The rows of the samples of a shard, and what was counted."""
        rows: list[dict[str, Any]] = []
        quarantined: list[Rejected] = []
        for sample in spec:
            with failing_disk_ends_ingest():
                row, faults = self._row(sample)
            quarantined += faults
            if not faults:
                rows.append(row)
        identities: dict[str, list[int]] = {}
        for row in rows:
            identities.setdefault(row["split"], []).append(row["identity"])
        statistics = {
            "identities": {split: sorted(set(ids)) for split, ids in identities.items()},
            "samples": {split: len(ids) for split, ids in identities.items()},
            "cameras": sorted({row["camera_id"] for row in rows}),
            "separate": [row["sample_id"] for row in rows if row["sample_id"].endswith(QUERY_SUFFIX)],
            "quarantined": [fault.model_dump() for fault in quarantined],
        }
        if missing := self._missing(rows):
            statistics["missing"] = missing
        return pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA), statistics

    def _missing(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
        """How many images rows of each split lack, by modality; without what is complete."""
        missing: dict[str, dict[str, int]] = {}
        for row in rows:
            for name in MODALITIES if self.allow_missing and SIDE_BY_SIDE.lower() not in row else ():
                if name.lower() not in row:
                    counts = missing.setdefault(row["split"], {})
                    counts[name] = counts.get(name, 0) + 1
        return missing

    def _row(self, sample: Mapping[str, Any]) -> tuple[dict[str, Any], list[Rejected]]:
        """The row of a sample, and what is wrong with its files (then there is no row)."""
        names = (SIDE_BY_SIDE,) if SIDE_BY_SIDE in sample["files"] else MODALITIES
        files: dict[str, bytes] = {}
        images: dict[str, bytes] = {}
        sizes: dict[str, Size] = {}
        faults: list[Rejected] = []
        for name in names:
            file = sample["files"].get(name)
            if file is None:
                if not self.allow_missing:
                    faults.append(self._without(name, sample))
                continue
            try:
                files[name] = read_source(self.root, file)
                images[name], (height, width) = self._stored(name, files[name])
                sizes[name] = height, width_side_by_side(width) if name == SIDE_BY_SIDE else width
            except ValueError as error:
                faults.append(Rejected(file=file, reason=str(error)))
        wanted = self.size or next(iter(sizes.values()), None)
        for name, size in sizes.items():
            if wanted is not None and size != wanted:
                times = f"{len(MODALITIES)} times " if name == SIDE_BY_SIDE else ""
                reason = (
                    f"is {times}{size[0]}x{size[1]} (height x width{describe_turn(files[name])}), expected "
                    f"{wanted[0]}x{wanted[1]}"
                )
                faults.append(Rejected(file=sample["files"][name], reason=reason))
        if faults:
            return {}, faults
        labels = {name: value for name, value in sample.items() if name not in ("files", "query_files")}
        height, width = next(iter(sizes.values()))
        return labels | {
            **{name.lower(): data for name, data in images.items()},
            "height": height,
            "width": width,
            "digest": sample_digest(*(files.get(name, b"") for name in names)),
        }, []

    def _without(self, name: str, sample: Mapping[str, Any]) -> Rejected:
        """The fault of a sample that lacks an image."""
        reason = f"has no {name} image"
        if self.thermal_range is None:
            reason += f" of the same name{self.unread.get(sample['sample_id'], '')}"
        else:
            reason += "; with --allow-missing zeros take its place"
        return Rejected(file=next(iter(sample["files"].values())), reason=reason)

    def _stored(self, name: str, data: bytes) -> tuple[bytes, Size]:
        """What is stored of a file, and the size of its image."""
        if self.thermal_range is None:
            return data, image_size(data)
        return store_image(data, name in (Modality.NIR, Modality.TIR), self.thermal_range)
