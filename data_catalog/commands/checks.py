"""`checks`: what must hold before a GPU is used."""

import argparse

from data_catalog.checks.data_checks import CheckReport, CheckSettings, run_checks
from data_catalog.checks.image_hashes import HASH_BITS
from data_catalog.checks.newest_tables import find_newest_tables
from data_catalog.commands.arguments import add_catalog, check_dataset
from data_catalog.commands.command import Command
from data_catalog.commands.printing import print_findings
from data_catalog.progress import progress_bar


class ChecksResult(CheckReport):
    """What the checks found in a data set."""

    dataset: str


def _add_options(parser: argparse.ArgumentParser) -> None:
    default = CheckSettings()
    parser.add_argument("name", metavar="NAME", help="name of the data set")
    add_catalog(parser)
    parser.add_argument("--samples-key", metavar="KEY", help="default: the newest samples table")
    parser.add_argument(
        "--samples-per-identity",
        type=int,
        default=default.samples_per_identity,
        metavar="K",
        help=f"samples of an identity that a batch needs (default: {default.samples_per_identity})",
    )
    parser.add_argument(
        "--junk",
        choices=("camera", "scene"),
        help="what a query has in common with its junk (default: the card's)",
    )
    for name, what in (
        ("near_empty", "a mask with less foreground than this share is near-empty"),
        ("near_full", "a mask with more foreground than this share is near-full"),
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            default=getattr(default, name),
            metavar="SHARE",
            help=f"{what} (default: {getattr(default, name)})",
        )
    parser.add_argument(
        "--duplicate-bits",
        type=int,
        default=default.duplicate_bits,
        metavar="BITS",
        help=f"how many of the {HASH_BITS} bits of the perceptual hash may differ between copies "
        f"(default: {default.duplicate_bits})",
    )
    parser.add_argument("--no-images", action="store_true", help="do not look for duplicate images")


def _run(args: argparse.Namespace) -> ChecksResult:
    settings = CheckSettings(
        samples_per_identity=args.samples_per_identity,
        junk=args.junk,
        near_empty=args.near_empty,
        near_full=args.near_full,
        images=not args.no_images,
        duplicate_bits=args.duplicate_bits,
    )
    check_dataset(args.catalog, args.name)
    tables = find_newest_tables(args.catalog, args.name, args.samples_key)
    with progress_bar("hash images", "shard") as progress:
        report = run_checks(tables, settings, progress)
    return ChecksResult(dataset=args.name, errors=report.errors, warnings=report.warnings)


COMMAND = Command(
    name="checks",
    summary="Check what must hold before a GPU is used, and name the samples that fail.",
    example="benchmark --catalog runs/catalog --samples-per-identity 8",
    add_options=_add_options,
    run=_run,
    result=ChecksResult,
    show=print_findings,
    succeeded=lambda result: not result.errors,
)
