"""An open training view: rows by number, memory-mapped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_catalog.errors import CatalogError
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table
from data_catalog.views.training_view import LABELS, ViewSettings


@dataclass(frozen=True)
class ViewBatch:
    """Copied rows of a view, in the requested order.

    Attributes:
        pixels: uint8 `(batch, modality, channel, height, width)`.
        mask: uint8 `(batch, height, width)`, share of each pixel that is foreground times 255.
        text_feature: float32 `(batch, text_dim)`, not normalised.
        identity: int64 `(batch,)`, raw.
        camera_id: int32 `(batch,)`, from 0; -1 for none.
        scene_id: int32 `(batch,)`, -1 for none.
        is_query: bool `(batch,)`.
        is_gallery: bool `(batch,)`.
        sample_index: int64 `(batch,)`.
        missing: bool `(batch, modality)`, the images that a sample lacks, whose pixels are 0; None where the
            data set lacks none.
    """

    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    text_feature: npt.NDArray[np.float32]
    identity: npt.NDArray[np.int64]
    camera_id: npt.NDArray[np.int32]
    scene_id: npt.NDArray[np.int32]
    is_query: npt.NDArray[np.bool_]
    is_gallery: npt.NDArray[np.bool_]
    sample_index: npt.NDArray[np.int64]
    missing: npt.NDArray[np.bool_] | None


class View:
    """An open view: labels in memory; pixels, masks and text features memory-mapped.

    Rows are numbered from 0 to `len(view) - 1`, by identity, then `sample_index`.

    Attributes:
        table: The table.
        shards: Numbers of the open shards, which hold the rows.
        image_size: Height and width, in pixels.
        text_dim: Width of a text feature.
        sample_index: int64 `(rows,)`, position in the data set.
        sample_id: str `(rows,)`.
        identity: int64 `(rows,)`, raw.
        camera_id: int32 `(rows,)`.
        scene_id: int32 `(rows,)`.
        is_query: bool `(rows,)`.
        is_gallery: bool `(rows,)`.
        missing: bool `(rows, modality)`, as in `ViewBatch`.
    """

    def __init__(self, table: Table, shards: Sequence[int] | None = None) -> None:
        if table.kind is not TableKind.VIEW:
            raise CatalogError(f"table {table.path} holds {table.kind.value}, expected a view")
        settings = ViewSettings.model_validate(table.manifest.settings)
        self.table = table
        self.image_size = (settings.height, settings.width)
        self.text_dim = settings.text_dim
        self.shards = tuple(range(len(table.manifest.shards)) if shards is None else sorted(set(shards)))
        opened = [table.read_shard(number) for number in self.shards]
        self._starts = np.cumsum([0, *(shard.num_rows for shard in opened)])
        self._pixels = [_bytes(shard["pixels"], (3, 3, *self.image_size)) for shard in opened]
        self._mask = [_bytes(shard["mask"], self.image_size) for shard in opened]
        self._text_feature = [
            _whole(shard["text_feature"]).flatten().to_numpy().reshape(-1, self.text_dim) for shard in opened
        ]
        labels = pa.concat_tables(shard.select(["sample_index", "sample_id", *LABELS]) for shard in opened)
        self.sample_index: npt.NDArray[np.int64] = labels["sample_index"].to_numpy()
        self.sample_id: npt.NDArray[np.str_] = np.array(labels["sample_id"].to_pylist(), dtype=np.str_)
        self.identity: npt.NDArray[np.int64] = labels["identity"].to_numpy()
        self.camera_id: npt.NDArray[np.int32] = labels["camera_id"].to_numpy()
        self.scene_id: npt.NDArray[np.int32] = labels["scene_id"].to_numpy()
        self.is_query: npt.NDArray[np.bool_] = labels["is_query"].to_numpy()
        self.is_gallery: npt.NDArray[np.bool_] = labels["is_gallery"].to_numpy()
        marks = [_bytes(shard["missing"], (3,)) for shard in opened if "missing" in shard.column_names]
        self.missing: npt.NDArray[np.bool_] | None = np.concatenate(marks) == 1 if marks else None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def digest(self) -> str:
        """Digest of the table."""
        return self.table.digest

    @property
    def cameras(self) -> int:
        """Number of cameras, up to the largest `camera_id` of the whole table; at least one."""
        return max(1, int(max(self.table.statistics["cameras"])) + 1)

    def batch(self, rows: npt.ArrayLike) -> ViewBatch:
        """Copy the rows with these numbers, in this order; a number may be repeated.

        Raises:
            IndexError: If a number is negative or not below `len(view)`.
        """
        rows = checked_rows(rows, len(self))
        return ViewBatch(
            pixels=self._gather(self._pixels, rows),
            mask=self._gather(self._mask, rows),
            text_feature=self._gather(self._text_feature, rows),
            missing=None if self.missing is None else self.missing[rows],
            **{name: getattr(self, name)[rows] for name in ("sample_index", *LABELS)},
        )

    def _gather(self, shards: list[npt.NDArray[Any]], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        out = np.empty((len(rows), *shards[0].shape[1:]), dtype=shards[0].dtype)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        # A loop over rows copies each once; a selection of each shard's rows would copy them twice.
        for position, (number, row) in enumerate(zip(owners, rows - self._starts[owners], strict=True)):
            out[position] = shards[number][row]
        return out


def open_view(table: Table, shards: Sequence[int] | None = None) -> View:
    """Open a view for reading; cheap, so every worker may have its own.

    Args:
        table: The view.
        shards: Numbers of the shards to open, in any order; others are neither read nor fetched. All when
            None.

    Raises:
        CatalogError: If the table is not a view, or a shard is missing.
    """
    return View(table, shards)


def _bytes(column: pa.ChunkedArray, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A column of fixed-size binary as uint8 `(rows, *shape)`, without a copy."""
    array = _whole(column)
    values = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return values.reshape(-1, *shape)[array.offset : array.offset + len(array)]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; a shard has one record batch, so this copies nothing."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def checked_rows(rows: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """Numbers of rows as an array `(rows,)`.

    Raises:
        IndexError: They are not one-dimensional, or one is negative or not below `count`.
    """
    numbers = np.asarray(rows, dtype=np.int64)
    if numbers.ndim != 1:
        raise IndexError(f"rows has {numbers.ndim} dimensions, expected one")
    if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
        raise IndexError(f"rows reach from {numbers.min()} to {numbers.max()}, expected 0 to {count - 1}")
    return numbers
