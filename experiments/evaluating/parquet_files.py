"""Parquet files of an evaluation, in a folder or at a URI: embeddings and queries."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_catalog.storage import filesystems
from data_catalog.views.view_reader import View

ROWS_PER_GROUP = 8192
"""Rows that are converted to Arrow at a time: a whole large view would need twice the memory."""

LABELS = ("sample_id", "identity", "camera_id", "scene_id", "is_query", "is_gallery")


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


def view_labels(view: View) -> dict[str, np.ndarray]:
    """What is known of each row of a view, by column."""
    return {name: getattr(view, name) for name in LABELS}


def embedding_parts(
    labels: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray], rows_per_group: int = ROWS_PER_GROUP
) -> Iterator[pa.Table]:
    """Labels and features of samples, one row per sample, in parts.

    Args:
        labels: What is known of the samples, `(rows,)` by column, with `sample_id`.
        features: float32 `(rows, width)` by name.
        rows_per_group: Rows of a part.
    """
    for first in range(0, len(labels["sample_id"]), rows_per_group):
        rows = slice(first, first + rows_per_group)
        columns = {name: pa.array(values[rows]) for name, values in labels.items()}
        for name, values in features.items():
            flat = pa.array(np.ascontiguousarray(values[rows]).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        yield pa.table(columns)


def read_features(file: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Features of all samples of a file on this machine, float32 `(rows, width)`, those that it has."""
    there = pq.read_schema(file).names
    table = pq.read_table(file, columns=[name for name in names if name in there])
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    return {name: column.flatten().to_numpy().reshape(len(column), -1) for name, column in columns.items()}
