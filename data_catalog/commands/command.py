"""A command of the command line, its result if it builds a table, and results as text for a person."""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from data_catalog.checks.findings import CheckReport
from data_catalog.errors import NAMED, CatalogError, name_first
from data_catalog.progress import Progress, progress_bar
from data_catalog.records import Record
from data_catalog.tables.table import Table

LISTED = 10
"""How many entries of a list a person is shown."""


def print_result(result: Record | Mapping[str, Any], indent: str = "") -> None:
    """Print a result, one name and value per line, nested values indented, of long lists the beginning."""
    values = result.model_dump(mode="json") if isinstance(result, Record) else result
    width = max((len(str(name)) for name in values), default=0)
    for name, value in values.items():
        if isinstance(value, Mapping) and "digest" in value:
            print(
                f"{indent}{name:<{width}}  {value['digest'][:12]}  {value['rows']:>8} rows  {value['path']}"
            )
        elif isinstance(value, Mapping) and value:
            print(f"{indent}{name}")
            print_result(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            print(f"{indent}{name}")
            for entry in value[:LISTED]:
                print(f"{indent}  " + "  ".join(map(str, entry.values())))
            if len(value) > LISTED:
                print(f"{indent}  and {len(value) - LISTED} more; --json names every one")
        else:
            text = f"{value:.4f}" if isinstance(value, float) else value
            if isinstance(value, list) and len(value) > LISTED:
                text = f"{name_first(value, LISTED)}; --json names every one"
            print(f"{indent}{name:<{width}}  {text if text not in ({}, [], None) else '-'}")


def print_findings(report: CheckReport) -> None:
    """Print errors and warnings, one per line, and how many there are."""
    for kind, findings in (("error", report.errors), ("warning", report.warnings)):
        for finding in findings:
            print(f"{kind:<8}{finding.check}: {finding.message}")
    is_short = any(len(finding.rows) > NAMED for finding in (*report.errors, *report.warnings))
    print(
        f"{len(report.errors)} errors, {len(report.warnings)} warnings"
        + ("; --json names every row" if is_short else "")
    )


R = TypeVar("R", bound=Record)


class DatasetResult(Record):
    """What a command found in a data set. List it as the last base class: then its field is printed first."""

    dataset: str


class BuiltTable(DatasetResult):
    """A table that a command built or found; a subclass adds the statistics of its kind."""

    table: str
    """Kind of the table."""
    key: str
    digest: str
    rows: int
    reused: bool
    """Whether the table was there before."""
    path: str
    """Folder or URI of the table."""
    seconds: float
    """Time that the command took."""


T = TypeVar("T", bound=BuiltTable)


@dataclass(frozen=True)
class Command(Generic[R]):
    """One command of the command line.

    Attributes:
        name: What the user types.
        summary: What it does, in one line.
        example: Arguments that show its use.
        add_options: Declares its arguments.
        run: Does the work; raises CatalogError where the user must correct something.
        result: Model of what `run` returns, which `--json` prints and whose schema `--json-schema` prints.
        show: Prints the result as text.
        succeeded: Whether the exit status for this result is 0 and not 1.
    """

    name: str
    summary: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], R]
    result: type[BaseModel]
    show: Callable[[Any], None] = print_result
    succeeded: Callable[[R], bool] = lambda result: True


def says_nothing(table: BuiltTable, what: str) -> CatalogError:
    """The error about a table of an earlier version that would not be made now.

    Args:
        table: The table.
        what: What all of its rows are.
    """
    return CatalogError(
        f"{table.path}: all {table.rows} rows are {what}, in a table of an earlier version; delete that "
        "folder and run the same command again"
    )


def build(title: str, make: Callable[[Progress], Table], result: type[T]) -> T:
    """Make a table under a progress bar.

    Args:
        title: What the bar says.
        make: Makes the table.
        result: Model of the table's facts and statistics.

    Raises:
        CatalogError: As `make` raises it.
    """
    start = time.monotonic()
    with progress_bar(title, "shard") as progress:
        table = make(progress)
    facts = {
        "dataset": table.manifest.dataset,
        "table": table.kind.value,
        "key": table.manifest.key,
        "digest": table.digest,
        "rows": len(table),
        "reused": table.reused,
        "path": table.path,
        "seconds": round(time.monotonic() - start, 3),
        **table.statistics,
    }
    return result.model_validate(facts)
