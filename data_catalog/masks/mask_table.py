"""Makes the `masks` table of samples: one mask of the person or vehicle per sample.

A segmenter finds one mask in the three images of a sample; its settings build it. It lives in a Ray Data
actor, so a model is loaded once per actor. The segmenters are in `data_catalog.masks.segmenters`, which
implements the interfaces of this module.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from data_catalog.errors import CatalogError
from data_catalog.extensions import ActorSettings
from data_catalog.masks.mask_statistics import (
    STATISTICS_VERSION,
    TrueMasks,
    describe_shard,
    describe_table,
    tells_nothing,
)
from data_catalog.progress import Progress, no_progress
from data_catalog.samples.images import Pixels, Segmentation, decode_triplets, encode_mask
from data_catalog.samples.layout import layout_of
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import MASKS_SCHEMA, TableKind
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table


class Segmenter(Protocol):
    """Finds the object in the three images of a sample."""

    def segment(self, triplets: Sequence[Pixels]) -> list[Segmentation]:
        """One mask for each sample, of its own size.

        Args:
            triplets: Images, uint8 `(modality, height, width, channel)` each; RGB, NIR, TIR.

        Raises:
            CatalogError: If the user can correct what is wrong; its message is what they read.
        """


class SegmenterSettings(ActorSettings):
    """Everything that determines a segmenter's masks; builds the segmenter."""

    @abstractmethod
    def build(self) -> Segmenter:
        """The segmenter; called in the actor that uses it."""


@dataclass
class MaskMaker(ShardMaker[int]):
    """Makes shards of a masks table; a subclass says where the masks come from.

    Attributes:
        samples: What the masks are of.
        truth: Masks to score against; set by `build_masks`.
    """

    samples: Table
    truth: TrueMasks | None = field(default=None, init=False)

    def is_final(self, statistics: Mapping[str, Any]) -> bool:
        """Whether it tells anything apart: a table of such shards is refused, to be made again."""
        return not tells_nothing(statistics)

    @abstractmethod
    def find(self, samples: pa.Table) -> tuple[list[Segmentation], list[dict[str, str]]]:
        """A mask for each row of the samples table, and what is wrong (sample, file and reason)."""

    def make(self, number: int) -> tuple[pa.Table, Statistics]:
        """Rows of the shard, and its statistics: `describe_shard` and `faults`."""
        samples = self.samples.read_shard(number)
        found, faults = self.find(samples)
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


def make_masks(
    samples: Table,
    settings: SegmenterSettings,
    true_masks: str | Path | None = None,
    progress: Progress = no_progress,
) -> Table:
    """The `masks` table of a samples table, by a segmenter.

    Args:
        samples: What to segment.
        settings: The segmenter.
        true_masks: Folder of true masks, `<split folder>/<name>.png`, to score against; they do not
            change the masks.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` are `mask_statistics.MaskStatistics`.

    Raises:
        CatalogError: If the true masks are not there, one cannot be read or has another size, or the
            segmenter cannot be built.
    """
    return build_masks(
        _SegmenterMaker(samples, settings),
        settings=settings.stored("segmenter"),
        summarise=describe_table,
        true_masks=true_masks,
        progress=progress,
    )


def build_masks(
    maker: MaskMaker,
    *,
    settings: Mapping[str, Any],
    summarise: Callable[[list[Statistics]], Statistics],
    true_masks: str | Path | None = None,
    key_extra: Any = None,
    earlier_key_extra: Callable[[], Any] = lambda: None,
    created: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> Table:
    """The `masks` table of a samples table, from masks of any origin.

    Args:
        maker: Makes the shards.
        settings: What determines the rows.
        summarise: Makes the statistics of the table from those of all shards (`describe_shard` and `faults`).
        true_masks: The same argument of `make_masks`.
        key_extra: What else distinguishes this request.
        earlier_key_extra: As for `build_table`.
        created: What else to note about the origin.
        progress: Called as shards complete.

    Raises:
        CatalogError: In the cases of `make_masks`, and if the maker or `summarise` raises it.
    """
    samples = maker.samples
    if true_masks is not None:
        split_folders = layout_of(samples).split_folders
        maker.truth = TrueMasks(Path(true_masks).resolve(), split_folders)
        maker.truth.check()
        created = {**(created or {}), "true_masks": str(maker.truth.root)}
    # Masks scored against a truth and masks that are not have the same rows, and other statistics.
    truth = maker.truth

    def earlier_extra() -> Any:
        return [STATISTICS_VERSION, earlier_key_extra(), truth and truth.earlier_fingerprint()]

    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.MASKS,
        settings=settings,
        inputs={"samples": samples.digest},
        specs=range(len(samples.manifest.shards)),
        maker=maker,
        summarise=summarise,
        key_extra=[STATISTICS_VERSION, key_extra, truth and truth.fingerprint()],
        earlier_key_extra=earlier_extra,
        created=created,
        before=None if maker.truth is None else maker.truth.load,
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
class _SegmenterMaker(MaskMaker):
    settings: SegmenterSettings
    segmenter: Segmenter | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.gpus_per_actor = self.settings.gpus_per_actor
        self.cpus_per_actor = self.settings.cpus_per_actor

    def find(self, samples: pa.Table) -> tuple[list[Segmentation], list[dict[str, str]]]:
        if self.segmenter is None:
            # Not before the first shard, so that wrong weights are reported as an error of it.
            self.segmenter = self.settings.build()
        triplets = decode_triplets(samples)
        found = self.segmenter.segment(triplets)
        self._check(found, triplets, samples["sample_id"].to_pylist())
        return found, []

    def _check(self, found: Sequence[Segmentation], triplets: Sequence[Pixels], ids: Sequence[str]) -> None:
        """Refuse what is no mask of its sample: a user's own segmenter may be wrong."""
        name = self.settings.stored("segmenter")["segmenter"]
        if len(found) != len(triplets):
            raise CatalogError(
                f"segmenter {name} gave {len(found)} masks for {len(triplets)} samples, expected one for "
                "each; correct it, and raise its version"
            )
        for one, triplet, sample_id in zip(found, triplets, ids, strict=True):
            mask, size = one.mask, triplet.shape[1:3]
            if mask.dtype != bool or mask.shape != size:
                raise CatalogError(
                    f"segmenter {name}, sample {sample_id}: the mask is {mask.dtype} {mask.shape}, expected "
                    f"bool {size}, the size of its images"
                )
            if not 0 <= one.score <= 1:
                raise CatalogError(
                    f"segmenter {name}, sample {sample_id}: the score is {one.score}, expected 0 to 1"
                )
