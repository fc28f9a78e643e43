"""The rows of a manifest as text, from CSV, JSON Lines or Parquet."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_catalog.errors import CatalogError

ENDINGS = (".csv", ".jsonl", ".parquet")
COMMENT = "#"
"""Begins the lines before the header of a CSV file that are comments."""


class Problem(NamedTuple):
    """What is wrong with a row before its cells are looked at."""

    column: str
    value: str
    expected: str


@dataclass(frozen=True)
class Row:
    """A row of a manifest.

    Attributes:
        number: Number of its line, as an editor counts; of Parquet the number of the row, from 1.
        cells: Text by column; "" or no entry for an empty cell.
        problems: Why there are no cells that can be read.
    """

    number: int
    cells: Mapping[str, str]
    problems: tuple[Problem, ...] = ()


def read_rows(path: Path) -> tuple[str, list[str], list[Row]]:
    """What the numbers of the rows count (`line` or `row`), the columns, and the rows.

    Raises:
        CatalogError: There is no such file, or it is of another kind.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        what = "is no file" if reader else f"ends in {path.suffix or 'nothing'}"
        raise CatalogError(f"source {path} {what}; a manifest is a file that ends in {', '.join(ENDINGS)}")
    try:
        columns, rows = reader(path)
    except OSError as error:
        reason = error.strerror or error
        raise CatalogError(f"{path} cannot be read ({reason}); correct the path or its rights") from error
    except csv.Error as error:
        raise CatalogError(f"{path} cannot be read ({error}); write it again") from None
    return "row" if reader is _read_parquet else "line", columns, rows


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(
            f"{path} is not UTF-8 (byte {error.start}: 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    stream = io.StringIO(_text(path), newline="")
    comments = 0
    while stream.readline().startswith(COMMENT):
        comments += 1
    stream.seek(0)
    for _ in range(comments):
        stream.readline()
    reader = csv.reader(stream, strict=True)
    columns = [cell.strip() for cell in next(reader, [])]

    def row(number: int, cells: list[str]) -> Row:
        if len(cells) == len(columns):
            return Row(number, {name: cell.strip() for name, cell in zip(columns, cells, strict=True)})
        expected = f"expected {len(columns)} cells as in the header; quote a cell that holds a comma"
        return Row(number, {}, (Problem("row", f"{len(cells)} cells", expected),))

    return columns, [row(comments + reader.line_num, cells) for cells in reader if any(cells)]


def _read_jsonl(path: Path) -> tuple[list[str], list[Row]]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            rows.append(_row(number, entry))
        else:
            expected = "expected a JSON object in one line"
            rows.append(Row(number, {}, (Problem("row", line.strip(), expected),)))
    # Lines may leave out what they have no value for.
    return list(dict.fromkeys(name for row in rows for name in row.cells)), rows


def _read_parquet(path: Path) -> tuple[list[str], list[Row]]:
    import pyarrow as pa  # noqa: PLC0415 - scripts that list settings need none of it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise CatalogError(f"{path} cannot be read ({error}); write it again") from None
    return table.column_names, [_row(number, entry) for number, entry in enumerate(table.to_pylist(), 1)]


def _row(number: int, entry: Mapping[str, Any]) -> Row:
    cells, problems = {}, []
    for name, value in entry.items():
        try:
            cells[name] = _as_text(value)
        except ValueError as error:
            cells[name] = ""
            problems.append(Problem(name, f"{value!r:.80}", str(error)))
    return Row(number, cells, tuple(problems))


def _as_text(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124 - NaN, as pandas writes an empty cell
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        # pandas makes numbers of a column with empty cells real ones.
        return str(int(value))
    if not isinstance(value, str | int | float):
        raise ValueError("expected text, a number, true or false")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("expected whole characters; half of one is there") from None
    return str(value).strip()
