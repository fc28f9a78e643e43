"""A manifest to fill in: every column, explained, with rows as an example."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_catalog.errors import CatalogError
from data_catalog.formats.manifest_columns import COLUMNS
from data_catalog.formats.manifest_files import COMMENT, ENDINGS

_SCHEMA = pa.schema(
    pa.field(
        column.name,
        {"identity": pa.int64(), "camera": pa.int64(), "scene": pa.int64()}.get(
            column.name, pa.bool_() if column.name in ("query", "gallery") else pa.string()
        ),
        metadata={"about": column.about},
    )
    for column in COLUMNS
)


def example_rows() -> list[dict[str, Any]]:
    """Three people for training and two for the test, each seen by two cameras."""
    looks = (
        "a man in a red jacket",
        "a woman with a backpack",
        "a man in shorts",
        "a woman in a long coat",
        "a child with a yellow hat",
    )
    return [
        {
            "name": f"person{identity}_camera{camera}",
            "split": "train" if identity <= 3 else "test",
            "identity": identity,
            **{name: f"{name}/person{identity}_camera{camera}.png" for name in ("rgb", "nir", "tir")},
            "camera": camera,
            "scene": None,
            "query": None,
            "gallery": None,
            "mask": f"mask/person{identity}_camera{camera}.png",
            "caption": look,
        }
        for identity, look in enumerate(looks, start=1)
        for camera in (1, 2)
    ]


def write_template(path: Path) -> int:
    """Write a manifest with the example; gives the number of rows.

    Raises:
        CatalogError: The name has no ending of a manifest.
        FileExistsError: There is such a file.
    """
    ending, rows = path.suffix.lower(), example_rows()
    if ending not in ENDINGS:
        raise CatalogError(f"--out {path}: expected a name that ends in {', '.join(ENDINGS)}")
    encoded = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[ending](rows)
    with path.open("xb") as file:
        file.write(encoded)
    return len(rows)


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    sink = io.StringIO(newline="")
    for column in COLUMNS:
        sink.write(f"{COMMENT} {column.name}: {column.about}\n")
    writer = csv.DictWriter(sink, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=_SCHEMA), sink)
    return bytes(sink.getvalue())
