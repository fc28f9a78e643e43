"""Makes the `samples` table from image folders: the original bytes, checked, with identity, camera and split.

A broken file does not stop the others: it goes to a quarantine list with the reason, its sample is left out,
and the `sample_index` of the others does not change.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from data_catalog.errors import CatalogError
from data_catalog.extensions import is_own
from data_catalog.formats import (
    Listing,
    Rejected,
    SourceFormat,
    SourceSample,
    find_format,
)
from data_catalog.formats.folder_listing import find_unread
from data_catalog.formats.rgbnt201 import SYNTHESIS_MANIFEST
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.samples.any_image import AUTO, read_range
from data_catalog.samples.file_contents import digest_files
from data_catalog.samples.held_out import hold_out
from data_catalog.samples.layout import layout_facts
from data_catalog.samples.query_copies import separate_queries
from data_catalog.samples.samples_maker import SamplesMaker
from data_catalog.samples.source_images import (
    Size,
    most_common_size,
)
from data_catalog.tables.building import build_table
from data_catalog.tables.digests import json_digest
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import Statistics
from data_catalog.tables.table import Table
from stmi.config import LARGEST_COUNT
from stmi.modality import MODALITIES

ARTIFACTS = "artifacts"
"""Input of the samples table of a synthetic data set whose masks or readings are other than by default."""


class SplitSize(Record):
    """How much a split holds."""

    samples: int
    identities: int


class SamplesStatistics(Record):
    """Statistics of a `samples` table."""

    splits: dict[str, SplitSize]
    cameras: tuple[int, ...]
    separate_queries: tuple[str, ...] = ()
    """Queries that are samples of their own, being no copies of the gallery's file of their name."""
    missing: dict[str, dict[str, int]] = Field({})
    """By split and modality, how many images samples lack; zeros take their place."""
    quarantined: tuple[Rejected, ...]
    """Files that were left out, with their samples."""


class IngestSettings(Record):
    """Which samples ingest accepts, and how it divides the table into shards."""

    format: str = "rgbnt201"
    """A built-in layout, or the user's own as `module:attribute`."""
    size: Size | Literal["most common", "any"] = "most common"
    """Height and width that every image must have; or the most common size of the RGB images, if at least
    half have it. Otherwise they were cropped one by one, and any size is accepted: the view resizes them."""
    samples_per_shard: int = Field(512, ge=1, le=LARGEST_COUNT)
    """Largest number of samples of a shard."""
    validation_identities: int = Field(0, ge=0, le=LARGEST_COUNT)
    """Training identities to hold out for validation, if the data set has no split for it. A sweep needs
    them, and an epoch can be chosen on them."""
    thermal_range: Annotated[str, AfterValidator(read_range)] = "auto"
    """What becomes 0 and 255 of NIR and TIR images of more than 8 bits: auto (each image's own lowest and
    highest value), percentile (its own 1st and 99th), or two raw values as 7000:9500."""
    allow_missing: bool = False
    """Take samples that lack one or two images; these are zeros in training and evaluation."""

    def stored(self, source_format: SourceFormat) -> dict[str, Any]:
        """What a table keeps of them; without what older versions lacked where it decides nothing."""
        unused = {"allow_missing"} if not self.allow_missing else set()
        return self.model_dump(exclude=unused | (set() if source_format.any_image else {"thermal_range"}))


def ingest(
    source: str | Path,
    catalog: str | Path,
    dataset: str,
    settings: IngestSettings | None = None,
    progress: Progress = no_progress,
) -> Table:
    """The `samples` table of a source folder.

    Args:
        source: Folder in the layout `settings.format`, or a manifest.
        catalog: Root of the catalog, folder or URI.
        dataset: Name under which the catalog keeps it.
        settings: Format, expected size, shard size.
        progress: Called as shards complete.

    Returns:
        The table; its `statistics` are `SamplesStatistics`.

    Raises:
        CatalogError: If the folder is not of the layout, or no good sample is left in one of its splits.
    """
    settings = settings or IngestSettings()
    source_format = find_format(settings.format)
    _require_utf8(Path(source).resolve())
    if settings.thermal_range != AUTO and not source_format.any_image:
        raise CatalogError(
            f"thermal_range={settings.thermal_range}: format {source_format.name} has colour JPEG alone; "
            "leave it out, or name files of more bits in a manifest (--format manifest)"
        )
    if Path(source).is_file() and not source_format.is_manifest:
        raise CatalogError(
            f"source {source} is a file, and format {source_format.name} a folder; a manifest is read with "
            "--format manifest"
        )
    listing = source_format.read(Path(source))
    listing = replace(listing, samples=hold_out(listing.samples, settings.validation_identities))
    listed = Counter(sample.split for sample in listing.samples)
    size = most_common_size(listing) if settings.size == "most common" else settings.size

    def summarise(shards: list[Statistics]) -> Statistics:
        statistics = _summarise(shards, listing.rejected)
        for split in listed:
            if split not in statistics.splits:
                own = {file for s in listing.samples if s.split == split for file in s.files.values()}
                faults = statistics.quarantined
                first = next((fault for fault in faults if fault.file in own), faults[0])
                raise CatalogError(
                    f"source {source}: none of the {listed[split]} samples of split {split!r} can be used "
                    f"(first: {first.file}: {first.reason}); correct the files and run ingest again"
                )
        return statistics.model_dump(mode="json", exclude_defaults=True)

    synthesis = _read_synthesis(listing.root)
    # The labels of the published layouts are in the names of their files.
    with_labels = is_own(settings.format) or source_format.is_manifest
    return build_table(
        catalog=catalog,
        dataset=dataset,
        kind=TableKind.SAMPLES,
        settings=settings.stored(source_format) | {"size": size},
        # Two data sets of equal images may differ in these alone, and need tables of their own.
        inputs=synthetic_inputs(synthesis.get("artifacts", {})),
        specs=lambda: _shard_specs(separate_queries(listing), settings.samples_per_shard),
        maker=SamplesMaker(
            listing.root.resolve(),
            None if size == "any" else size,
            find_unread(listing),
            settings.thermal_range if source_format.any_image else None,
            settings.allow_missing,
        ),
        summarise=summarise,
        key_extra=_fingerprint(listing, with_labels),
        earlier_key_extra=lambda: _earlier_fingerprint(listing, with_labels),
        created={
            "source": str(Path(source).absolute() if source_format.is_manifest else listing.root.resolve()),
            "card": f"synthetic_{synthesis['settings']['kind']}" if synthesis else source_format.name,
            "first_camera": source_format.first_camera,
            **({"layout": layout_facts(source_format)} if is_own(settings.format) else {}),
        },
        progress=progress,
    )


def synthetic_inputs(artifacts: Mapping[str, Any]) -> dict[str, str]:
    """The inputs of the samples table of a synthetic data set.

    Args:
        artifacts: The settings of its masks and readings that are not at their defaults.
    """
    return {ARTIFACTS: json_digest(artifacts)} if artifacts else {}


def _read_synthesis(root: Path) -> dict[str, Any]:
    """The manifest of the synthetic data set that a folder holds the images of; empty for another one."""
    manifest = root.resolve().parent / SYNTHESIS_MANIFEST
    try:
        synthesis = json.loads(manifest.read_text(encoding="utf-8"))
        return dict(synthesis) if synthesis["settings"]["kind"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _require_utf8(root: Path) -> None:
    """Refuse a folder whose name the manifest cannot hold as UTF-8."""
    try:
        str(root).encode()
    except UnicodeEncodeError:
        raise CatalogError(
            f"source {os.fsencode(root)!r}: the folder's name is not UTF-8; rename it and run ingest again"
        ) from None


def _fingerprint(listing: Listing, with_labels: bool) -> str:
    """Hash of the names and contents of the files.

    Args:
        listing: What was found.
        with_labels: Hash all of every sample too: a manifest, or a user's own layout, may have other labels
            for the same files once it is corrected.
    """
    return json_digest(
        {
            "files": digest_files(listing.root, _files(listing)),
            "rejected": [rejected.file for rejected in listing.rejected],
            "labels": [asdict(sample) for sample in listing.samples] if with_labels else None,
        }
    )


def _files(listing: Listing) -> list[str]:
    groups = (group for sample in listing.samples for group in (sample.files, sample.query_files))
    return [file for group in groups for file in group.values()]


def _earlier_fingerprint(listing: Listing, with_labels: bool) -> str:
    """What `_fingerprint` was in earlier versions: of names, sizes and times of change."""
    sha256 = hashlib.sha256()
    if with_labels:
        sha256.update(json.dumps([asdict(sample) for sample in listing.samples]).encode())
    for path in _files(listing) + [rejected.file for rejected in listing.rejected]:
        facts = (path, -1, -1)
        with suppress(OSError):
            if os.access(listing.root / path, os.R_OK):
                status = (listing.root / path).stat()
                facts = (path, status.st_size, status.st_mtime_ns)
        sha256.update(repr(facts).encode("utf-8", "surrogateescape"))
    return sha256.hexdigest()


def _shard_specs(samples: Sequence[SourceSample], samples_per_shard: int) -> list[list[dict[str, Any]]]:
    """The samples of each shard with their `sample_index`: neighbours in sorted order, all of one split."""
    rows = [{"sample_index": index, **asdict(sample)} for index, sample in enumerate(samples)]
    splits = [list(group) for _, group in groupby(rows, key=itemgetter("split"))]
    return [
        split[start : start + samples_per_shard]
        for split in splits
        for start in range(0, len(split), samples_per_shard)
    ]


def _summarise(shards: Iterable[Mapping[str, Any]], rejected: Iterable[Rejected]) -> SamplesStatistics:
    samples: Counter[str] = Counter()
    identities: dict[str, set[int]] = {}
    cameras: set[int] = set()
    quarantined = list(rejected)
    separate: list[str] = []
    missing: dict[str, Counter[str]] = {}
    for shard in shards:
        samples.update(shard["samples"])
        cameras.update(shard["cameras"])
        separate += shard["separate"]
        quarantined += [Rejected(**fault) for fault in shard["quarantined"]]
        for split, counts in shard.get("missing", {}).items():
            missing.setdefault(split, Counter()).update(counts)
        for split, ids in shard["identities"].items():
            identities.setdefault(split, set()).update(ids)
    return SamplesStatistics(
        splits={
            split: SplitSize(samples=count, identities=len(identities[split]))
            for split, count in samples.items()
        },
        cameras=tuple(sorted(cameras)),
        separate_queries=tuple(separate),
        missing={
            split: {name.value: counts[name] for name in MODALITIES if counts[name]}
            for split, counts in missing.items()
        },
        quarantined=tuple(sorted(quarantined, key=lambda fault: (fault.file, fault.reason))),
    )
