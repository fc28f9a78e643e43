"""Train and evaluate one model.

    python experiments/train.py --recipe demo
    python experiments/train.py --recipe demo --set model.sfm=off --seed 1
    python experiments/train.py --recipe demo --set train.epochs=5 --set batch.size=24 --json
    python experiments/train.py --recipe rgbnt201-released --plan
    python experiments/train.py --recipe rgbnt201-paper --catalog s3://lab/catalog --workers 8

Run again with the same settings, an interrupted run continues and a finished one is shown. With
RAY_ADDRESS set, or submitted with `ray job submit`, the workers run on that cluster.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments import datasets, recipes, runner
from experiments.command_line import run_command
from experiments.plan import plan, print_plan
from experiments.recipes import RECIPES, WORKSPACE, ExperimentConfig
from experiments.report import print_report
from stmi.clip import load_clip


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--recipe", default="demo", help=f"one of {', '.join(RECIPES)} (default: demo)")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="change a setting, for example model.sfm=off or model.str.tokens=2; may be repeated",
    )
    options.add_argument("--seed", type=int, help="shorthand for --set seed=N")
    options.add_argument("--workers", type=int, help="shorthand for --set train.workers=N")
    options.add_argument(
        "--workspace",
        default=str(WORKSPACE),
        help="folder of runs, on a disk that all nodes share (default: $STMI_WORKSPACE, or runs)",
    )
    options.add_argument("--catalog", help="folder or URI of the catalog (default: WORKSPACE/catalog)")
    options.add_argument(
        "--tracking-uri",
        help="MLflow server (default: $MLFLOW_TRACKING_URI, or a SQLite file in the workspace)",
    )
    options.add_argument(
        "--plan",
        action="store_true",
        help="train nothing: print the settings, and where recipe and counterpart differ from them",
    )
    options.add_argument("--json", action="store_true", help="print the result as one JSON document")
    return options


def configure(given: argparse.Namespace) -> ExperimentConfig:
    """The config that a command line asks for.

    Raises:
        ConfigError: A setting is unknown or impossible.
    """
    settings = list(given.settings)
    settings += [] if given.seed is None else [f"seed={given.seed}"]
    settings += [] if given.workers is None else [f"train.workers={given.workers}"]
    return recipes.resolve(given.recipe, settings)


def train(given: argparse.Namespace, narrate: datasets.Narrate = lambda step, result: None) -> dict[str, Any]:
    """Do what the command line asks for; returns the result."""
    config = configure(given)
    workspace, catalog = datasets.places(given.workspace, given.catalog)
    datasets.check_data_set(config, catalog)
    clip = load_clip(datasets.clip_source(config))
    datasets.check_settings(config, clip)
    runner.prepare_ray()
    tables = datasets.tables_of(config, clip, workspace, catalog, narrate)
    datasets.check_tables(config, clip, tables)
    return runner.run(config, tables, workspace, given.tracking_uri)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)
    if given.plan:
        return run_command(lambda: plan(configure(given)), given.json, print_plan)
    return run_command(lambda: train(given), given.json, print_report)


if __name__ == "__main__":
    sys.exit(main())
