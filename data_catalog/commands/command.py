"""What a command of the command line is, and what there is to tell of a table that one built."""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_catalog.commands.printing import print_result
from data_catalog.progress import progress_bar
from data_catalog.tables.building import Progress
from data_catalog.tables.table import Table

Result = dict[str, Any]
"""What a command tells: JSON values only."""


def _succeeds(result: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        name: What it is called by.
        summary: What it does, in one line.
        example: Arguments to show how it is used.
        add_options: Declares its arguments.
        run: Does it; raises CatalogError where the user must put something right.
        show: Prints the result for a person to read.
        succeeded: Whether the result is a good one; decides between exit status 0 and 1.
    """

    name: str
    summary: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]
    show: Callable[[Mapping[str, Any]], None] = print_result
    succeeded: Callable[[Mapping[str, Any]], bool] = _succeeds


def build(title: str, make: Callable[[Progress], Table]) -> Result:
    """Make a table under a progress bar, and what there is to tell of it."""
    start = time.monotonic()
    with progress_bar(title, "shard") as progress:
        table = make(progress)
    return {
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
