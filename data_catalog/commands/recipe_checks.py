"""`--recipe` of the commands that check: the rules of a run, which `experiments` knows."""

import argparse

from data_catalog.checks.findings import CheckReport
from data_catalog.commands.arguments import given_settings
from data_catalog.errors import CatalogError
from data_catalog.extensions import load_object

RECIPE_CHECKS = "experiments.planning.run_checks:check_recipe"
"""Named as a user's own module is: the catalog is used without `experiments`, too."""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `check_recipe` reads."""
    parser.add_argument(
        "--recipe",
        metavar="RECIPE",
        help="check what a run of this recipe or YAML file checks: it starts if there is no error (default: "
        "what every run needs)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="with --recipe, one of its settings, as for experiments/train.py; repeatable",
    )


def check_recipe(args: argparse.Namespace, *others: str) -> CheckReport | None:
    """The report of a run's own rules; None without `--recipe`.

    Args:
        args: The arguments.
        others: Options (by attribute) that the run decides, so that they contradict `--recipe`.

    Raises:
        CatalogError: The recipe or a setting is impossible, or the options contradict each other.
    """
    if args.recipe is None:
        if args.settings:
            raise CatalogError(f"--set {args.settings[0]} changes a recipe; name it with --recipe")
        return None
    given = [f"--{name.replace('_', '-')}" for name, value in given_settings(args, *others).items() if value]
    if given:
        raise CatalogError(
            f"{' and '.join(given)}: with --recipe the run decides; leave it out, or change the recipe with "
            "--set"
        )
    report: CheckReport = load_object(RECIPE_CHECKS, "--recipe")(
        args.recipe, args.settings, args.name, args.catalog
    )
    return report
