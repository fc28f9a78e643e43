"""The training view: one split at one image size, decoded once and memory-mapped by every run.

Pixels are uint8 at their final size, so training neither decodes nor resizes; reading a row copies its bytes.
The mask is stored per pixel (its share of foreground) and not per token, because augmentation crops by pixels
and must crop the mask in the same way.

Rows are sorted by identity, then by `sample_index`, and a shard holds whole identities, so that a worker can
train on some of the shards (`data_catalog.views.placement`). The file names of the published data sets begin
with the identity, so there this is the order of `sample_index`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.samples.images import (
    IMAGE_COLUMNS,
    SIDE_BY_SIDE_COLUMN,
    decode_mask,
    decode_triplets,
    missing_images,
)
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind, view_schema
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table
from data_catalog.views.placement import count_identities, cut_by_identity
from stmi.config import LARGEST_COUNT
from stmi.images import foreground_share

SMALLEST_PATCH = 8
"""Side of the smallest patch that an image tower is built with, in pixels."""
LARGEST_SIDE = 4096
"""As `stmi.config.ImageSize` has it."""
LABELS = ("identity", "camera_id", "scene_id", "is_query", "is_gallery")


class ViewSettings(Record):
    """Settings of a view."""

    split: str
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    text_dim: int = Field(512, ge=1, le=LARGEST_COUNT)
    """Width of the zeros that replace missing text features; otherwise ignored."""
    samples_per_shard: int = Field(128, ge=1, le=LARGEST_COUNT)
    """Largest number of samples of a shard; a single larger identity has its own shard."""


class ViewStatistics(Record):
    """Statistics of a `view` table."""

    identities: tuple[tuple[tuple[int, int], ...], ...]
    """For each shard its identities, each with its number of samples."""
    cameras: tuple[int, ...]


def make_view(
    samples: Table,
    masks: Table | None,
    text_features: Table | None,
    settings: ViewSettings,
    progress: Progress = no_progress,
) -> Table:
    """The `view` table of one split.

    Args:
        samples: Images and labels.
        masks: Their masks; None makes every pixel foreground.
        text_features: Their text features; None makes them zero.
        settings: Split and image size.
        progress: Called as shards complete.

    Returns:
        The table, to be read with `view_reader.open_view`; its `statistics` are `ViewStatistics`.

    Raises:
        CatalogError: If there is no such split, or a table was made from other samples.
    """
    splits = samples.statistics["splits"]
    if settings.split not in splits:
        raise CatalogError(
            f"split {settings.split!r} is not in {samples.path}; expected one of {', '.join(splits)}"
        )
    _check_size(settings)
    inputs = {"samples": samples.digest}
    for name, table in (("masks", masks), ("text_features", text_features)):
        if table is not None:
            if table.manifest.inputs["samples"] != samples.digest:
                raise CatalogError(
                    f"{name} {table.path} was made from other samples than {samples.path}; run that step "
                    "again for these samples"
                )
            inputs[name] = table.digest
    if text_features is not None:
        settings = settings.model_copy(update={"text_dim": text_features.statistics["text_dim"]})
    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.VIEW,
        settings=settings.model_dump(),
        inputs=inputs,
        specs=_shard_specs(samples, settings),
        maker=_ViewMaker(samples, masks, text_features, settings),
        summarise=lambda shards: {
            "identities": [shard["identities"] for shard in shards],
            "cameras": sorted({camera for shard in shards for camera in shard["cameras"]}),
        },
        progress=progress,
    )


class _ShardSpec(TypedDict):
    """The identities of a shard, and the shards of samples that they are in."""

    identities: list[int]
    shards: list[int]


def _check_size(settings: ViewSettings) -> None:
    """Refuse a size that no model takes: its patches are square, and fill the image."""
    height, width = settings.height, settings.width
    if max(height, width) > LARGEST_SIDE:
        raise CatalogError(
            f"size {height}x{width}: a model's image has at most {LARGEST_SIDE} pixels a side; give less"
        )
    if math.gcd(height, width) < SMALLEST_PATCH:
        raise CatalogError(
            f"size {height}x{width} is no whole number of square patches of {SMALLEST_PATCH} pixels or more, "
            "so no model takes it; give multiples of the patch of your CLIP (16 for ViT-B/16), as 256x128"
        )


def _shard_specs(samples: Table, settings: ViewSettings) -> list[_ShardSpec]:
    found: dict[int, npt.NDArray[np.int64]] = {}
    for number in range(len(samples.manifest.shards)):
        rows = samples.read_shard(number, ["split", "identity"])
        # A shard of samples holds one split.
        if rows["split"].to_pylist()[:1] == [settings.split]:
            found[number] = rows["identity"].to_numpy()
    shards = cut_by_identity(np.concatenate(list(found.values())), settings.samples_per_shard)
    return [
        {
            "identities": identities.tolist(),
            "shards": [number for number, held in found.items() if np.isin(held, identities).any()],
        }
        for identities in shards
    ]


@dataclass(frozen=True)
class _ViewMaker(ShardMaker[_ShardSpec]):
    is_light = True

    samples: Table
    masks: Table | None
    text_features: Table | None
    settings: ViewSettings

    def make(self, spec: _ShardSpec) -> tuple[pa.Table, Statistics]:
        numbers, size = spec["shards"], (self.settings.height, self.settings.width)
        keys = _read(self.samples, numbers, ["sample_index", "sample_id", *LABELS])
        index, identity = (keys[name].to_numpy() for name in ("sample_index", "identity"))
        order = np.lexsort((index, identity))
        chosen = order[np.isin(identity[order], spec["identities"])]
        samples = keys.take(chosen)
        rows = samples.num_rows
        pixels = np.empty((rows, 3, 3, *size), dtype=np.uint8)
        missing = np.zeros((rows, 3), dtype=np.uint8)
        for row, images in self._images(numbers, chosen):
            pixels[row] = decode_triplets(images, size)[0].transpose(0, 3, 1, 2)
            missing[row] = missing_images(images)
        mask = np.full((rows, *size), 255, dtype=np.uint8)
        if self.masks is not None:
            masks = _joined(self.masks, numbers, "mask", index)
            for row, position in enumerate(chosen.tolist()):
                mask[row] = foreground_share(decode_mask(masks[position].as_py()), size)
        text_features = np.zeros((rows, self.settings.text_dim), dtype=np.float32)
        if self.text_features is not None:
            column = _joined(self.text_features, numbers, "text_feature", index).take(chosen)
            text_features = column.combine_chunks().flatten().to_numpy().reshape(rows, -1)
        has_missing = bool(self.samples.statistics.get("missing"))
        schema = view_schema(*size, self.settings.text_dim, has_missing)
        columns = [
            *(samples[name].combine_chunks() for name in ("sample_index", "sample_id", *LABELS)),
            _binary(pixels, schema.field("pixels").type),
            _binary(mask, schema.field("mask").type),
            pa.FixedSizeListArray.from_arrays(
                pa.array(text_features.reshape(-1)), type=schema.field("text_feature").type
            ),
            *([_binary(missing, schema.field("missing").type)] if has_missing else []),
        ]
        facts = {
            "identities": count_identities(samples["identity"].to_numpy()),
            "cameras": np.unique(samples["camera_id"].to_numpy()).tolist(),
        }
        return pa.table(columns, schema=schema), facts

    def _images(
        self, numbers: Sequence[int], chosen: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, pa.Table]]:
        """For each chosen row of these shards of samples its place in `chosen`, and a table of its images.

        One shard at a time, because all of them may hold more than memory does.
        """
        start = 0
        for number in numbers:
            end = start + self.samples.manifest.shards[number].rows
            rows = np.flatnonzero((chosen >= start) & (chosen < end))
            found = self.samples.read_rows(
                number, (chosen[rows] - start).tolist(), (*IMAGE_COLUMNS, SIDE_BY_SIDE_COLUMN)
            )
            yield from ((row, found.slice(number, 1)) for number, row in enumerate(rows.tolist()))
            start = end


def _read(table: Table, numbers: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    return pa.concat_tables(table.read_shard(number, columns) for number in numbers)


def _joined(
    table: Table, numbers: Sequence[int], column: str, sample_index: npt.NDArray[np.int64]
) -> pa.ChunkedArray:
    rows = _read(table, numbers, ["sample_index", column])
    if not np.array_equal(rows["sample_index"].to_numpy(), sample_index):
        raise CatalogError(
            f"shards {', '.join(map(str, numbers))} of {table.path} hold other samples than the samples "
            "table; delete that folder and run its step again"
        )
    return rows[column]


def _binary(values: npt.NDArray[np.uint8], kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
