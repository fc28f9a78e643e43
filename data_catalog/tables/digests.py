"""Digests: SHA-256 of JSON values, of rows, and of tables."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from data_catalog.tables.schemas import TableKind


def json_digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def table_digest(
    kind: TableKind,
    contents: Sequence[str],
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    schema_version: int | None = None,
) -> str:
    """The digest of a table from the content digests of its shards, its inputs and its settings."""
    return json_digest(
        {
            "table": kind.value,
            "schema_version": kind.schema_version if schema_version is None else schema_version,
            "shards": list(contents),
            "inputs": dict(inputs),
            "settings": dict(settings),
        }
    )


class _HashSink:
    """A writable file that keeps only the SHA-256 of what is written."""

    closed = False

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None: ...


def content_digest(rows: pa.Table) -> str:
    """SHA-256 of a table's schema and values, independent of the file format and its compression.

    Parquet writes the version of its library into every file, so the digest of the file would change with an
    upgrade though no value changes.
    """
    rows = rows.replace_schema_metadata(None).combine_chunks()
    sink = _HashSink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), rows.schema) as writer:
        for batch in rows.to_batches():
            writer.write_batch(batch)
    return sink.sha256.hexdigest()
