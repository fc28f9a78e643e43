"""`synthesize`: generate the synthetic data set."""

import argparse

from data_catalog.command_parser import local_path
from data_catalog.commands.arguments import add_setting_options, given_settings, image_size, parse_assignments
from data_catalog.commands.command import Command
from data_catalog.progress import progress_bar
from data_catalog.synthetic import SynthesisReport, SyntheticSettings, synthesize

OPTIONS = ("kind", "seed", "height", "width")
"""Settings that have an option of their own."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder to write")
    add_setting_options(parser, SyntheticSettings, "kind", "seed")
    parser.add_argument("--size", type=image_size, metavar="HxW", help="image size (default: 64x32)")
    names = ", ".join(name for name in SyntheticSettings.model_fields if name not in OPTIONS)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"any other setting, repeatable: {names}",
    )


def _run(args: argparse.Namespace) -> SynthesisReport:
    values = parse_assignments(args.set) | given_settings(args, "kind", "seed")
    if args.size is not None:
        values["height"], values["width"] = args.size
    settings = SyntheticSettings(**values)
    with progress_bar("synthesize", "sample") as progress:
        return synthesize(settings, args.out, progress)


COMMAND = Command(
    name="synthesize",
    summary="Generate the synthetic data set, in the RGBNT201 layout.",
    example="--out runs/benchmark --seed 0",
    add_options=_add_options,
    run=_run,
    result=SynthesisReport,
)
