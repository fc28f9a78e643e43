"""`verify`: recompute all digests and name what changed."""

import argparse

from data_catalog.commands.arguments import add_dataset, check_dataset
from data_catalog.commands.command import LISTED, Command
from data_catalog.inspect.verification import Verification, verify
from data_catalog.progress import progress_bar


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser, samples_key=False)


def _run(args: argparse.Namespace) -> Verification:
    check_dataset(args.catalog, args.name)
    with progress_bar("verify", "shard") as progress:
        return verify(args.catalog, args.name, progress)


def _show(found: Verification) -> None:
    for fault in found.errors[:LISTED]:
        print(f"{fault.table}  {fault.shard or 'manifest.json'}: {fault.message}")
    if len(found.errors) > LISTED:
        print(f"and {len(found.errors) - LISTED} more faults; --json names every one")
    for name in found.unfinished:
        print(f"{name}  is unfinished; run its step again to complete it, or delete the folder")
    print(f"{len(found.tables)} tables, {sum(found.tables.values())} shards: {len(found.errors)} faults")


COMMAND = Command(
    name="verify",
    summary="Recompute the digests of every table, but not those of stored answers and reports.",
    example="benchmark --catalog runs/catalog",
    add_options=_add_options,
    run=_run,
    result=Verification,
    show=_show,
    succeeded=lambda result: not result.errors,
)
