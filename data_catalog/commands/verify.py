"""`verify`: recompute every digest and name what changed."""

import argparse
from collections.abc import Mapping
from typing import Any

from data_catalog.commands.arguments import add_catalog, check_dataset
from data_catalog.commands.command import Command, Result
from data_catalog.inspect.verification import verify
from data_catalog.progress import progress_bar


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the data set")
    add_catalog(parser)


def _run(args: argparse.Namespace) -> Result:
    check_dataset(args.catalog, args.name)
    with progress_bar("verify", "shard") as progress:
        found = verify(args.catalog, args.name, progress)
    return {
        "dataset": args.name,
        "tables": found.tables,
        "unfinished": list(found.unfinished),
        "errors": [vars(fault) for fault in found.errors],
    }


def _show(result: Mapping[str, Any]) -> None:
    for fault in result["errors"]:
        print(f"{fault['table']}  {fault['shard'] or 'manifest.json'}: {fault['message']}")
    for name in result["unfinished"]:
        print(f"{name}  is unfinished; run its step again to complete it, or delete the folder")
    shards = sum(result["tables"].values())
    print(f"{len(result['tables'])} tables, {shards} shards: {len(result['errors'])} faults")


COMMAND = Command(
    name="verify",
    summary="Recompute the digests of every table, shards and manifest; kept answers and reports are none.",
    example="benchmark --catalog runs/catalog",
    add_options=_add_options,
    run=_run,
    show=_show,
    succeeded=lambda result: not result["errors"],
)
