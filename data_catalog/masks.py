"""Samples to the `masks` table: where the object is, one mask per sample.

A segmenter looks at the three images of a sample and gives one mask; which one it is comes with the
settings. It lives in a Ray Data actor, so a model is loaded once per actor. GrabCut, here, needs no
weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from PIL import UnidentifiedImageError

from data_catalog.building import Progress, ShardMaker, build_table
from data_catalog.errors import CatalogError
from data_catalog.formats import FORMATS
from data_catalog.grabcut import GrabCutSettings
from data_catalog.images import (
    Mask,
    Pixels,
    Segmentation,
    decode_mask,
    decode_triplets,
    encode_mask,
    intersection_over_union,
    mean,
)
from data_catalog.schemas import MASKS_SCHEMA, TableKind
from data_catalog.tables import Table


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

    def build(self) -> Segmenter:
        """The segmenter; called in the actor that uses it."""

    def model_dump(self) -> dict[str, Any]:
        """The settings as JSON values."""


SEGMENTERS: Mapping[str, type[GrabCutSettings]] = {"grabcut": GrabCutSettings}
"""Name of a segmenter to its settings."""


def make_masks(
    samples: Table,
    settings: SegmenterSettings | None = None,
    true_masks: str | Path | None = None,
    progress: Progress | None = None,
) -> Table:
    """The `masks` table of a samples table.

    Args:
        samples: What to segment.
        settings: The segmenter; GrabCut when None.
        true_masks: Folder of true masks, `<split folder>/<name>.png`, to score against. They shape no mask.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` holds `foreground_fraction` (mean), `score` (mean), `empty` (masks without
        foreground) and, with true masks, `mean_iou`, `mean_iou_by_camera` and `scored` (samples that have
        a true mask).

    Raises:
        CatalogError: If the true masks are not there, or one cannot be read or has another size.
    """
    settings = settings or GrabCutSettings()
    truth = None if true_masks is None else Path(true_masks).resolve()
    split_folders = FORMATS[samples.manifest.settings["format"]].split_folders
    if truth is not None and not any((truth / folder).is_dir() for folder in split_folders.values()):
        raise CatalogError(
            f"true masks {true_masks} holds no folder of a split; expected "
            f"{', '.join(split_folders.values())} with one PNG per sample"
        )
    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.MASKS,
        settings=settings.model_dump(),
        inputs={"samples": samples.digest},
        work=[{"shard": number} for number in range(len(samples.manifest.shards))],
        maker=_MasksMaker(samples, settings, truth, split_folders),
        summarise=_summarise,
        # Masks scored against a truth and masks that are not have the same rows, and other statistics.
        key_extra=None if truth is None else _fingerprint(truth, split_folders.values()),
        created={} if truth is None else {"true_masks": str(truth)},
        progress=progress,
    )


def _fingerprint(truth: Path, folders: Any) -> list[list[Any]]:
    files = (file for folder in sorted(folders) for file in sorted((truth / folder).glob("*.png")))
    return [[str(file.relative_to(truth)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


@dataclass
class _MasksMaker(ShardMaker):
    samples: Table
    settings: SegmenterSettings
    truth: Path | None
    split_folders: Mapping[str, str]
    segmenter: Segmenter | None = field(default=None, init=False)

    def prepare(self) -> None:
        self.segmenter = self.settings.build()

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        assert self.segmenter is not None
        samples = self.samples.read_shard(work["shard"])
        found = self.segmenter.segment(decode_triplets(samples))
        ious: dict[str, list[float]] = {}
        if self.truth is not None:
            ids, cameras = samples["sample_id"].to_pylist(), samples["camera_id"].to_pylist()
            for sample_id, camera_id, segmentation in zip(ids, cameras, found, strict=True):
                true_mask = self._true_mask(sample_id, segmentation.mask.shape)
                if true_mask is not None:
                    iou = intersection_over_union(segmentation.mask, true_mask)
                    ious.setdefault(str(camera_id), []).append(iou)
        fractions = [float(segmentation.mask.mean()) for segmentation in found]
        scores = [segmentation.score for segmentation in found]
        rows = pa.table(
            [
                samples["sample_index"],
                samples["sample_id"],
                [encode_mask(segmentation.mask) for segmentation in found],
                pa.array(fractions, pa.float32()),
                pa.array(scores, pa.float32()),
                [segmentation.source for segmentation in found],
            ],
            schema=MASKS_SCHEMA,
        )
        return rows, {"fractions": fractions, "scores": scores, "ious": ious}

    def _true_mask(self, sample_id: str, shape: tuple[int, ...]) -> Mask | None:
        assert self.truth is not None
        split, _, name = sample_id.partition("/")
        path = self.truth / self.split_folders[split] / f"{name}.png"
        if not path.is_file():
            return None
        try:
            mask = decode_mask(path.read_bytes())
        except (UnidentifiedImageError, OSError) as error:
            raise CatalogError(f"true mask {path} cannot be read ({error}); expected a PNG") from None
        if mask.shape != shape:
            raise CatalogError(f"true mask {path} is {mask.shape}, expected the size of its sample, {shape}")
        return mask


def _summarise(shards: list[dict[str, Any]]) -> dict[str, Any]:
    fractions = [value for shard in shards for value in shard["fractions"]]
    by_camera: dict[str, list[float]] = {}
    for shard in shards:
        for camera_id, ious in shard["ious"].items():
            by_camera.setdefault(camera_id, []).extend(ious)
    statistics = {
        "foreground_fraction": mean(fractions),
        "score": mean([value for shard in shards for value in shard["scores"]]),
        "empty": fractions.count(0.0),
    }
    if not by_camera:
        return statistics
    ious = [iou for camera_id in sorted(by_camera, key=int) for iou in by_camera[camera_id]]
    return statistics | {
        "mean_iou": mean(ious),
        "mean_iou_by_camera": {
            camera_id: mean(by_camera[camera_id]) for camera_id in sorted(by_camera, key=int)
        },
        "scored": len(ious),
    }
