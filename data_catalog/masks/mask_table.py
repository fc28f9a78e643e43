"""Samples to the `masks` table: where the object is, one mask per sample.

A segmenter looks at the three images of a sample and gives one mask; which one it is comes with the
settings. It lives in a Ray Data actor, so a model is loaded once per actor. Of
`data_catalog.masks.segmenters`, `grabcut` needs no weights, `sam2` its authors' checkpoint, and `mask_files`
imports masks that exist already.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from data_catalog.formats import FORMATS
from data_catalog.masks.mask_statistics import STATISTICS_VERSION, TrueMasks, describe_shard, describe_table
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.progress import Progress
from data_catalog.samples.images import Pixels, Segmentation, decode_triplets, encode_mask
from data_catalog.tables.building import ShardMaker, build_table
from data_catalog.tables.schemas import MASKS_SCHEMA, TableKind
from data_catalog.tables.table import Table


class Segmenter(Protocol):
    """Finds the object in the three images of a sample."""

    def segment(self, triplets: Sequence[Pixels]) -> list[Segmentation]:
        """One mask for each sample, of its own size.

        Args:
            triplets: Images, uint8 `(modality, height, width, channel)` each.
        """


class SegmenterSettings(Protocol):
    """A frozen pydantic model that says all that shapes a segmenter's masks, and builds it."""

    @property
    def segmenter(self) -> str:
        """Name of the segmenter."""

    @property
    def gpus_per_actor(self) -> float:
        """GPUs that one segmenter uses where the cluster has any."""

    @property
    def cpus_per_actor(self) -> float:
        """CPUs that one segmenter uses otherwise."""

    def build(self) -> Segmenter:
        """The segmenter; called in the actor that uses it."""

    def model_dump(self) -> dict[str, Any]:
        """The settings as JSON values."""


@dataclass
class MaskFinder(ABC):
    """Where the masks of a shard come from; sent to the actors."""

    gpus_per_actor: float = field(default=0, init=False)
    cpus_per_actor: float = field(default=1, init=False)
    is_light: bool = field(default=False, init=False)

    @abstractmethod
    def find(self, samples: pa.Table) -> tuple[list[Segmentation], list[dict[str, str]]]:
        """A mask for each row of the samples table, and what is wrong (file and reason)."""


def make_masks(
    samples: Table,
    settings: SegmenterSettings | None = None,
    true_masks: str | Path | None = None,
    progress: Progress | None = None,
) -> Table:
    """The `masks` table of a samples table, by a segmenter.

    Args:
        samples: What to segment.
        settings: The segmenter; GrabCut when None.
        true_masks: Folder of true masks, `<split folder>/<name>.png`, to score against. They shape no mask.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` are those of `mask_statistics.describe_table`.

    Raises:
        CatalogError: If the true masks are not there, one cannot be read or has another size, or the
            segmenter cannot be built.
    """
    settings = settings or GrabCutSettings()
    return build_masks(
        samples,
        _SegmenterFinder(settings),
        settings=settings.model_dump(),
        summarise=describe_table,
        true_masks=true_masks,
        progress=progress,
    )


def build_masks(
    samples: Table,
    finder: MaskFinder,
    *,
    settings: Mapping[str, Any],
    summarise: Callable[[list[dict[str, Any]]], dict[str, Any]],
    true_masks: str | Path | None = None,
    key_extra: Any = None,
    created: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Table:
    """The `masks` table of a samples table, from any finder.

    Args:
        samples: What the masks are of.
        finder: Gives them.
        settings: What shapes the rows.
        summarise: From the statistics of all shards (`describe_shard`, and `faults`) to those of the table.
        true_masks: As for `make_masks`.
        key_extra: What else distinguishes this request.
        created: What else to note about the origin.
        progress: Called as shards complete.

    Raises:
        CatalogError: As for `make_masks`, and whatever finder and `summarise` raise.
    """
    truth = None
    if true_masks is not None:
        split_folders = FORMATS[samples.manifest.settings["format"]].split_folders
        truth = TrueMasks(Path(true_masks).resolve(), split_folders)
        truth.check()
        created = {**(created or {}), "true_masks": str(truth.root)}
    # Masks scored against a truth and masks that are not have the same rows, and other statistics.
    extra = [STATISTICS_VERSION, key_extra, None if truth is None else truth.fingerprint()]
    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.MASKS,
        settings=settings,
        inputs={"samples": samples.digest},
        work=[{"shard": number} for number in range(len(samples.manifest.shards))],
        maker=_MasksMaker(samples, finder, truth),
        summarise=summarise,
        key_extra=extra,
        created=created,
        progress=progress,
    )


def list_below_gate(masks: Table, quality_gate: float) -> list[str]:
    """Ids of the samples whose mask scores less than the gate, in the table's order.

    Args:
        masks: A masks table.
        quality_gate: A score, 0 to 1.
    """
    rows = masks.read(["sample_id", "score"])
    below: list[str] = rows.filter(pc.less(rows["score"], pa.scalar(quality_gate, pa.float32())))[
        "sample_id"
    ].to_pylist()
    return below


@dataclass
class _SegmenterFinder(MaskFinder):
    settings: SegmenterSettings
    segmenter: Segmenter | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.gpus_per_actor = self.settings.gpus_per_actor
        self.cpus_per_actor = self.settings.cpus_per_actor

    def find(self, samples: pa.Table) -> tuple[list[Segmentation], list[dict[str, str]]]:
        if self.segmenter is None:
            # Not before the first shard, so that what is wrong with the weights is told as an error of it.
            self.segmenter = self.settings.build()
        return self.segmenter.segment(decode_triplets(samples)), []


@dataclass
class _MasksMaker(ShardMaker):
    samples: Table
    finder: MaskFinder
    truth: TrueMasks | None

    @property
    def gpus_per_actor(self) -> float:
        return self.finder.gpus_per_actor

    @property
    def cpus_per_actor(self) -> float:
        return self.finder.cpus_per_actor

    @property
    def is_light(self) -> bool:
        return self.finder.is_light

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        samples = self.samples.read_shard(work["shard"])
        found, faults = self.finder.find(samples)
        rows = pa.table(
            [
                samples["sample_index"],
                samples["sample_id"],
                [encode_mask(segmentation.mask) for segmentation in found],
                pa.array([float(segmentation.mask.mean()) for segmentation in found], pa.float32()),
                pa.array([segmentation.score for segmentation in found], pa.float32()),
                [segmentation.source for segmentation in found],
            ],
            schema=MASKS_SCHEMA,
        )
        return rows, describe_shard(samples, found, self.truth) | {"faults": faults}
