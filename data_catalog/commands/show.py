"""`show`: the card and what was found, side by side; the tables, and what each was made from."""

import argparse
from collections.abc import Iterator
from typing import Any

from data_catalog.checks.card_differences import SplitCounts
from data_catalog.commands.arguments import add_dataset, check_dataset
from data_catalog.commands.command import Command, DatasetResult, print_findings
from data_catalog.commands.recipe_checks import add_recipe, check_recipe
from data_catalog.inspect.lineage import TableOrigin, draw_tree, trace
from data_catalog.inspect.summary import Summary, describe
from data_catalog.records import Record
from data_catalog.tables.requests import Request, read_requests
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, list_tables


class TableFacts(Record):
    """The manifest of a table, without its shards."""

    table: str
    """Its kind."""
    key: str
    schema_version: int
    rows: int
    digest: str
    inputs: dict[str, str]
    """The digests of what the table was made from, by name."""
    settings: dict[str, Any]
    statistics: dict[str, Any]
    created: dict[str, Any]
    """When, from where and with which library versions."""
    seconds: float
    """Time that it took to make."""
    path: str
    """Folder or URI."""

    @classmethod
    def of(cls, table: Table) -> "TableFacts":
        """The facts of a table."""
        facts = table.manifest.model_dump(mode="json", exclude={"dataset", "shards", "seal"})
        return cls(**facts, path=table.path)


class RequestedTable(Request):
    """A table that was asked for; later steps take the last one of its kind that fits."""

    table: str
    """Its kind."""


class ShowResult(Summary, DatasetResult):
    """What there is of a data set, and all of its tables."""

    tables: tuple[TableFacts, ...]
    lineage: tuple[TableOrigin, ...] | None = None
    """What each table was made from, with `--lineage`."""
    history: tuple[RequestedTable, ...] | None = None
    """Every request for a table, the last one of a kind last, with `--history`."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument(
        "--lineage", action="store_true", help="show what each table was made from, as a tree"
    )
    parser.add_argument(
        "--history",
        action="store_true",
        help="show which tables were asked for, in this order; later steps take the last one of a kind",
    )
    add_recipe(parser)


def _run(args: argparse.Namespace) -> ShowResult:
    check_dataset(args.catalog, args.name)
    report = check_recipe(args, "samples_key")
    summary = describe(args.catalog, args.name, args.samples_key)
    return ShowResult(
        **dict(summary) | ({} if report is None else dict(report)),
        dataset=args.name,
        tables=tuple(map(TableFacts.of, list_tables(args.catalog, args.name))),
        lineage=tuple(trace(args.catalog, args.name)) if args.lineage else None,
        history=tuple(_history(args.catalog, args.name)) if args.history else None,
    )


def _history(catalog: str, dataset: str) -> Iterator[RequestedTable]:
    for kind in TableKind:
        for request in read_requests(catalog, dataset, kind):
            yield RequestedTable(**dict(request), table=kind.value)


def _show(result: ShowResult) -> None:
    card, found = result.card, result.found
    print(f"{result.dataset}: {card.title if card else 'no card'}")
    if card:
        for name in ("source", "citation", "licence"):
            print(f"  {name:<10}{getattr(card, name) or '-'}")
    print(f"\n  {'split':<8}{'':<12}{'card':>9}{'found':>9}")
    different = {(entry.split, entry.what): entry for entry in result.differences}
    counts = card.counts if card else {}
    for split in dict.fromkeys([*counts, *found]):
        for what in SplitCounts.model_fields:
            expected = getattr(counts.get(split), what, None)
            note = "  differs" if different.pop((split, what), None) else ""
            print(
                f"  {split:<8}{what:<12}{'-' if expected is None else expected:>9}"
                f"{getattr(found.get(split), what, 0):>9}{note}"
            )
    for entry in different.values():
        print(f"  {entry.what} differs: {entry.card} on the card, {entry.found} found")
    print()
    for name, artifact in result.artifacts.items():
        print(
            f"  {name:<14}{artifact.digest[:12]}  {artifact.rows:>8} rows  covers {artifact.coverage:.1%}  "
            f"{artifact.path}"
        )
    print()
    if result.lineage is not None:
        for line in draw_tree(result.lineage):
            print(f"  {line}")
        print()
    else:
        print("  tables")
        for table in result.tables:
            made_from = ", ".join(f"{name} {digest[:12]}" for name, digest in table.inputs.items())
            print(
                f"    {table.table:<14}{table.digest[:12]}  {table.rows:>8} rows  from {made_from or 'files'}"
            )
    if result.history is not None:
        print("  asked for, of each kind the last one at the end")
        for request in result.history:
            print(f"    {request.table:<14}{request.key}  {request.time}")
        print()
    print_findings(result)


COMMAND = Command(
    name="show",
    summary="A data set's card and what was found, side by side; its tables, and what each was made from.",
    example="benchmark --catalog runs/catalog --lineage",
    add_options=_add_options,
    run=_run,
    result=ShowResult,
    show=_show,
)
