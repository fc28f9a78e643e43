"""What an evaluation writes beside its result, as Parquet in a folder or at a URI: embeddings and queries."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_catalog.storage import filesystems
from data_catalog.views.training_view import View

ROWS_PER_GROUP = 8192
"""Rows that are turned into Arrow at a time: all of a large view's would need the memory twice."""

_LABELS = ("sample_id", "identity", "camera_id", "scene_id", "is_query", "is_gallery")


def write_parquet(place: str, parts: Iterable[pa.Table]) -> None:
    """Write tables of one schema one after the other, so that no reader finds half of them.

    Args:
        place: File or URI.
        parts: At least one table.

    Raises:
        data_catalog.errors.CatalogError: The place cannot be written to.
    """
    parts = iter(parts)
    first = next(parts)
    with (
        filesystems.written_atomically(*filesystems.open_root(place)) as stream,
        pq.ParquetWriter(stream, first.schema) as writer,
    ):
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)


def embedding_parts(view: View, features: dict[str, np.ndarray]) -> Iterator[pa.Table]:
    """A view's labels and features, one row a sample, some rows at a time.

    Args:
        view: What was embedded.
        features: float32 `(rows, width)` by name.
    """
    for first in range(0, len(view), ROWS_PER_GROUP):
        rows = slice(first, first + ROWS_PER_GROUP)
        columns = {name: pa.array(getattr(view, name)[rows]) for name in _LABELS}
        for name, values in features.items():
            flat = pa.array(np.ascontiguousarray(values[rows]).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        yield pa.table(columns)
