"""`show`: card and found side by side, what differs, and what was made from what."""

import argparse
from collections.abc import Mapping
from typing import Any

from data_catalog.commands.arguments import add_catalog, check_dataset
from data_catalog.commands.command import Command, Result
from data_catalog.commands.printing import print_findings, print_result
from data_catalog.inspect.lineage import draw_tree, trace
from data_catalog.inspect.summary import describe
from data_catalog.tables.table import list_tables

_ROWS = ("samples", "identities", "cameras", "queries", "gallery")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the data set")
    add_catalog(parser)
    parser.add_argument("--samples-key", metavar="KEY", help="default: the newest samples table")
    parser.add_argument("--lineage", action="store_true", help="draw what was made from what")


def _run(args: argparse.Namespace) -> Result:
    check_dataset(args.catalog, args.name)
    result = {
        "dataset": args.name,
        **describe(args.catalog, args.name, args.samples_key),
        "tables": [
            table.manifest.model_dump(mode="json", exclude={"dataset", "shards", "seal"})
            | {"path": table.path}
            for table in list_tables(args.catalog, args.name)
        ],
    }
    return result | {"lineage": trace(args.catalog, args.name)} if args.lineage else result


def _show(result: Mapping[str, Any]) -> None:
    card, found = result["card"], result["found"]
    print(f"{result['dataset']}: {card['title'] if card else 'no card'}")
    if card:
        for name in ("source", "citation", "licence"):
            print(f"  {name:<10}{card[name] or '-'}")
    print(f"\n  {'split':<8}{'':<12}{'card':>9}{'found':>9}")
    different = {(entry["split"], entry["what"]): entry for entry in result["differences"]}
    counts = card["counts"] if card else {}
    for split in dict.fromkeys([*counts, *found]):
        for what in _ROWS:
            expected = counts.get(split, {}).get(what)
            mark = "  differs" if different.pop((split, what), None) else ""
            print(
                f"  {split:<8}{what:<12}{'-' if expected is None else expected:>9}"
                f"{found.get(split, {}).get(what, 0):>9}{mark}"
            )
    for entry in different.values():
        print(f"  {entry['what']} differs: {entry['card']} on the card, {entry['found']} found")
    print()
    for name, entry in result["artifacts"].items():
        print(
            f"  {name:<14}{entry['digest'][:12]}  {entry['rows']:>8} rows  covers {entry['coverage']:.1%}  "
            f"{entry['path']}"
        )
    print()
    if "lineage" in result:
        for line in draw_tree(result["lineage"]):
            print(f"  {line}")
        print()
    else:
        print_result({"tables": result["tables"]}, "  ")
    print_findings(result)


COMMAND = Command(
    name="show",
    summary="A data set's card and what was found, side by side; its tables, and what was made from what.",
    example="benchmark --catalog runs/catalog --lineage",
    add_options=_add_options,
    run=_run,
    show=_show,
)
