"""Manifests of the small data set."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data_catalog.folders import FOLDERS, MODALITY_FOLDERS, sample_ids, true_mask_path

Rows = list[dict[str, Any]]


def rows_of(source: Path, with_cameras: bool = True) -> Rows:
    """A row for each sample of the small data set, as its files in the RGBNT201 layout say."""
    rows = []
    for sample_id in sample_ids():
        split, name = sample_id.split("/")
        files = [f"RGBNT201/{FOLDERS[split]}/{folder}/{name}.jpg" for folder in MODALITY_FOLDERS]
        row = {"name": name, "split": split, "identity": int(name[:6])}
        row |= dict(zip(("rgb", "nir", "tir"), files, strict=True))
        row |= {"camera": int(name[10]) - 1} if with_cameras else {}
        mask = true_mask_path(source, sample_id).relative_to(source).as_posix()
        rows.append(row | {"mask": mask, "caption": f"a person, seen as {name}, again"})
    return rows


def write_csv(path: Path, rows: Rows, ends: str = "\n", before: str = "", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        file.write(before)
        writer = csv.DictWriter(file, list(rows[0]), lineterminator=ends)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
