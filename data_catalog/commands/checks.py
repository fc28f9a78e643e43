"""`checks`: what must hold before a GPU is used."""

import argparse

from data_catalog.checks.data_checks import CheckSettings
from data_catalog.checks.findings import CheckReport
from data_catalog.checks.newest_tables import find_newest_tables
from data_catalog.checks.stored_reports import run_checks_anywhere
from data_catalog.commands.arguments import add_dataset, add_setting_options, check_dataset, given_settings
from data_catalog.commands.command import Command, DatasetResult, print_findings
from data_catalog.commands.recipe_checks import add_recipe, check_recipe
from data_catalog.progress import progress_bar

_SETTINGS = ("samples_per_identity", "near_empty", "near_full", "duplicate_bits")


class ChecksResult(CheckReport, DatasetResult):
    """What the checks found in a data set."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument(
        "--junk",
        choices=("camera", "scene"),
        help="what a query has in common with its junk (default: the card's)",
    )
    add_setting_options(parser, CheckSettings, *_SETTINGS)
    parser.add_argument("--no-images", action="store_true", help="do not look for duplicate images")
    add_recipe(parser)


def _run(args: argparse.Namespace) -> ChecksResult:
    report = check_recipe(args, "junk", "samples_key", "no_images", *_SETTINGS)
    if report is None:
        report = _check(args)
    return ChecksResult(dataset=args.name, errors=report.errors, warnings=report.warnings)


def _check(args: argparse.Namespace) -> CheckReport:
    settings = CheckSettings(junk=args.junk, images=not args.no_images, **given_settings(args, *_SETTINGS))
    check_dataset(args.catalog, args.name)
    tables = find_newest_tables(args.catalog, args.name, args.samples_key)
    with progress_bar("hash images", "shard") as progress:
        return run_checks_anywhere(tables, settings, progress)


COMMAND = Command(
    name="checks",
    summary="Check what must hold before a GPU is used, and name the samples that fail.",
    example="benchmark --catalog runs/catalog --recipe rgbnt201-paper --set data.dataset=benchmark",
    add_options=_add_options,
    run=_run,
    result=ChecksResult,
    show=print_findings,
    succeeded=lambda result: not result.errors,
)
