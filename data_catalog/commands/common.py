"""What the commands share: how one is described, how it finds its tables, and how it builds a table."""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_catalog.building import Progress
from data_catalog.commands.printing import print_result
from data_catalog.errors import CatalogError
from data_catalog.progress import progress_bar
from data_catalog.schemas import TableKind
from data_catalog.tables import Table, find_table, list_datasets

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


def add_catalog(parser: argparse.ArgumentParser) -> None:
    """Declare --catalog."""
    parser.add_argument("--catalog", required=True, metavar="URI", help="folder or URI (s3://...) of tables")


def add_samples(parser: argparse.ArgumentParser) -> None:
    """Declare what `find_samples` reads: catalog, data set and samples table."""
    add_catalog(parser)
    parser.add_argument("--dataset", metavar="NAME", help="default: the only one of the catalog")
    parser.add_argument("--samples-key", metavar="KEY", help="default: the newest samples table")


def find_samples(args: argparse.Namespace) -> Table:
    """The samples table that is meant: of the data set that is named, or of the only one there is."""
    return find_table(args.catalog, _dataset(args), TableKind.SAMPLES, key=args.samples_key)


def find_made_from(samples: Table, kind: TableKind, key: str | None) -> Table:
    """The newest table of a kind that was made of these samples, or the one with the given key."""
    inputs = {"samples": samples.digest}
    return find_table(samples.catalog, samples.manifest.dataset, kind, key=key, inputs=inputs)


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


def image_size(text: str) -> tuple[int, int]:
    """Height and width of an argument like 256x128.

    Raises:
        argparse.ArgumentTypeError: If it is not of that form.
    """
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no image size; write height x width, for example 256x128"
        )
    return int(height), int(width)


def check_dataset(catalog: str, name: str) -> None:
    """Make sure that the catalog holds a data set of this name.

    Raises:
        CatalogError: If it does not.
    """
    found = list_datasets(catalog)
    if name not in found:
        raise CatalogError(
            f"data set {name!r} is not in catalog {catalog}; expected one of: {', '.join(found) or 'none'}"
        )


def _dataset(args: argparse.Namespace) -> str:
    if args.dataset:
        return str(args.dataset)
    found = list_datasets(args.catalog)
    if len(found) != 1:
        raise CatalogError(
            f"catalog {args.catalog} holds {len(found)} data sets ({', '.join(found) or 'none'}); name one "
            "with --dataset"
        )
    return found[0]
