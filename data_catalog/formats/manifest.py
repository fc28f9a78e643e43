"""A manifest: a CSV, JSON Lines or Parquet file with a row for each sample, which may lie in any folders."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_catalog.errors import CatalogError
from data_catalog.formats.manifest_columns import COLUMNS, IMAGES
from data_catalog.formats.manifest_files import Row, read_rows
from data_catalog.formats.source import SPLITS, Listing, SourceFormat, SourceSample
from stmi.modality import MODALITIES

NAME = "manifest"
_SHOWN = 10
_EVERY_ROW_OR_NONE = ("camera", "scene")
_TEMPLATE = "`python -m data_catalog template --out FILE` writes a manifest with every column explained"


@dataclass
class _Faults:
    """What is wrong with the rows of a manifest."""

    unit: str
    found: list[str] = field(default_factory=list)

    def add(self, row: Row, column: str, value: str, expected: str) -> None:
        shown = f"{value!r:.80}" if value else "empty"
        self.found.append(f"{self.unit} {row.number}, {column}: {shown}, {expected}")

    def refuse(self, path: Path) -> None:
        """Raise a CatalogError that names the first ones, if there are any."""
        if self.found:
            more = len(self.found) - _SHOWN
            shown = [*self.found[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
            raise CatalogError(
                f"{path}: {len(self.found)} values are wrong; correct them and run the same command again "
                f"({_TEMPLATE}):\n  " + "\n  ".join(shown)
            )


def list_samples(source: Path) -> Listing:
    """The samples of a manifest.

    Files of the listing are relative to the folder that holds them all and the manifest, or URIs.

    Raises:
        CatalogError: The file cannot be read, or rows of it are wrong; names row, column and value of the
            first ones, what was expected, and what to do.
    """
    unit, columns, rows = read_rows(source)
    _check_columns(source, columns)
    if not rows:
        raise CatalogError(f"{source} has no row; expected one for each sample")
    faults = _Faults(unit)
    values = [value for row in rows if (value := _values(row, faults)) is not None]
    for column in _EVERY_ROW_OR_NONE:
        without = [row for row in rows if not row.cells.get(column)]
        for row in without if len(without) < len(rows) else ():
            faults.add(row, column, "", "but other rows have it; give it in every row or in none")
    _check_names(rows, faults)
    faults.refuse(source)
    # Of a link, the folder in which it is, as people see it.
    return _listing(source.absolute().parent, values)


def _check_columns(source: Path, columns: Sequence[str]) -> None:
    known = [column.name for column in COLUMNS]
    unknown = [name for name in columns if name not in known]
    missing = [column.name for column in COLUMNS if column.is_needed and column.name not in columns]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    for names, what in ((unknown, "unknown"), (twice, "there twice"), (missing, "missing")):
        if names:
            raise CatalogError(
                f"{source}: column {', '.join(map(repr, names))} is {what}; expected the columns "
                f"{', '.join(known)}, of which name, split and identity and an image are needed; {_TEMPLATE}"
            )


def _values(row: Row, faults: _Faults) -> dict[str, Any] | None:
    """The values of a row by column, without those of empty cells; None if one of them is wrong."""
    before, values = len(faults.found), dict[str, Any]()
    for problem in row.problems:
        faults.add(row, problem.column, problem.value, problem.expected)
    for column in COLUMNS if not row.problems else ():
        text = row.cells.get(column.name, "")
        try:
            if text:
                values[column.name] = column.read(text)
            elif column.is_needed:
                raise ValueError("expected a value in every row")
        except ValueError as error:
            faults.add(row, column.name, text, str(error))
    if not row.problems and not any(row.cells.get(name) for name in IMAGES):
        faults.add(row, ", ".join(IMAGES), "", "expected at least one image")
    for flag in ("query", "gallery"):
        if values.get("split") == "train" and values.get(flag):
            faults.add(row, flag, row.cells[flag], "expected false or nothing in split train")
    return values if len(faults.found) == before else None


def _check_names(rows: Sequence[Row], faults: _Faults) -> None:
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        split, name = row.cells.get("split", ""), row.cells.get("name", "")
        first = seen.setdefault((split, name), row.number)
        if name and first != row.number:
            faults.add(row, "name", name, f"is that of {faults.unit} {first} too; give each sample its own")


def _listing(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Listing:
    """What the rows say; paths in them are relative to `folder`."""
    local = {
        value: os.path.normpath(value if value.startswith("/") else f"{folder}/{value}")
        for row in rows
        for name in (*IMAGES, "mask")
        if (value := row.get(name)) and "://" not in value
    }
    root = Path(os.path.commonpath({str(folder), *map(os.path.dirname, local.values())}))
    start = len(str(root).rstrip("/")) + 1
    below = {value: path[start:] for value, path in local.items()}

    def sample(row: Mapping[str, Any]) -> SourceSample:
        is_evaluated = row["split"] != "train"
        files = zip(MODALITIES, (row.get(name) for name in IMAGES), strict=True)
        return SourceSample(
            sample_id=f"{row['split']}/{row['name']}",
            split=row["split"],
            identity=row["identity"],
            camera_id=row.get("camera", -1),
            scene_id=row.get("scene", -1),
            is_query=row.get("query", is_evaluated),
            is_gallery=row.get("gallery", is_evaluated),
            files={modality: below.get(file, file) for modality, file in files if file},
        )

    def column(name: str) -> Iterator[tuple[str, str]]:
        return ((f"{row['split']}/{row['name']}", row[name]) for row in rows if name in row)

    return Listing(
        root,
        tuple(sample(row) for row in rows),
        (),
        masks={sample_id: below[file] for sample_id, file in column("mask")},
        captions=dict(column("caption")),
    )


FORMAT = SourceFormat(
    name=NAME,
    split_folders={split: split for split in SPLITS},
    list_samples=list_samples,
    any_image=True,
    is_manifest=True,
)
