"""Parquet files of an evaluation, in a folder or at a URI: embeddings and queries."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_catalog.storage import filesystems
from data_catalog.views.view_reader import View

ROWS_PER_GROUP = 8192
"""Rows that are converted to Arrow at a time: a whole large view would need twice the memory."""

_LABELS = ("sample_id", "identity", "camera_id", "scene_id", "is_query", "is_gallery")


def write_parquet(location: str, parts: Iterable[pa.Table]) -> None:
    """Write tables of one schema to one file, atomically: no reader finds a part of it.

    Args:
        location: File or URI.
        parts: At least one table.

    Raises:
        data_catalog.errors.CatalogError: The location cannot be written to.
    """
    parts = iter(parts)
    first = next(parts)
    with (
        filesystems.written_atomically(*filesystems.open_root(location)) as stream,
        pq.ParquetWriter(stream, first.schema) as writer,
    ):
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)


def embedding_parts(
    view: View, features: dict[str, np.ndarray], rows_per_group: int = ROWS_PER_GROUP
) -> Iterator[pa.Table]:
    """Labels and features of a view, one row per sample, in parts.

    Args:
        view: The view that was embedded.
        features: float32 `(rows, width)` by name.
        rows_per_group: Rows of a part.
    """
    for first in range(0, len(view), rows_per_group):
        rows = slice(first, first + rows_per_group)
        columns = {name: pa.array(getattr(view, name)[rows]) for name in _LABELS}
        for name, values in features.items():
            flat = pa.array(np.ascontiguousarray(values[rows]).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        yield pa.table(columns)
