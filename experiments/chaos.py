"""Disturb trainings on your own machine or cluster, and see that nothing is lost.

    python experiments/chaos.py
    python experiments/chaos.py --fault worker driver --kills 3 --set train.epochs=8
    RAY_ADDRESS=head:6379 python experiments/chaos.py --workspace s3://lab/runs --workers 4 --end-node

Each fault comes to a run of its own, which is then held against an undisturbed one of the same settings: its
losses, metrics, ranks and final weights. The undisturbed run stays in the workspace, the others are deleted
unless they lost something. It has the options of experiments/train.py; unless you set others, the demo has 8
epochs, and every run a checkpoint every 3 steps. The exit status is 1 where something was lost.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from pydantic import BaseModel

from data_catalog.command_parser import CommandParser
from data_catalog.progress import open_progress
from experiments import train
from experiments.command_line import print_recipe_settings, run_command
from experiments.experiment_config import ConfigError
from experiments.run.run_options import resolve_catalog, resolve_workspace
from experiments.run.workers.ray_train import prepare_ray
from experiments.terminal_tables import print_table, text_console, text_table

if TYPE_CHECKING:
    from experiments.faults.fault_report import FaultOutcome, FaultReport

FAULTS = (
    "worker",
    "node",
    "head",
    "driver",
    "terminated",
    "slow",
    "nan",
    "memory",
    "mlflow",
    "storage",
    "disk",
)
AWAY_SECONDS = 120.0
"""How long the MLflow server or the storage stays away unless asked otherwise."""
DEMO_EPOCHS = 8
"""Epochs of the demo unless asked otherwise: faults may come after at least `KILLS` of its steps."""
KILLS = 5
"""How often a worker is killed unless asked otherwise."""
SECONDS = 900.0
"""How long each thing is waited for unless asked otherwise; workers may wait that long for their place."""


def printed() -> type[BaseModel]:
    """What this script prints with `--json`."""
    from experiments.faults.fault_report import FaultReport

    return FaultReport


def own_options(options: argparse.ArgumentParser) -> None:
    """Add the options that train.py has not."""
    group = options.add_argument_group("the faults")
    group.add_argument("--fault", nargs="+", choices=FAULTS, default=FAULTS, help="which ones (default: all)")
    group.add_argument(
        "--kills",
        type=int,
        default=KILLS,
        metavar="N",
        help=f"how often a worker is killed (default: {KILLS})",
    )
    group.add_argument(
        "--moments",
        type=int,
        default=0,
        metavar="SEED",
        help="seed of the moments at which faults come (default: 0)",
    )
    group.add_argument(
        "--end-node",
        action="store_true",
        help="allow the fault `node`: it ends a node of Ray with all that runs there, and needs another one "
        "with room for its workers, or something that starts it again",
    )
    group.add_argument(
        "--away-seconds",
        type=float,
        default=AWAY_SECONDS,
        help="how long the MLflow server of the fault `mlflow` and the object storage of `storage` stay away "
        f"(default: {AWAY_SECONDS:.0f})",
    )
    group.add_argument(
        "--most-seconds",
        type=float,
        default=SECONDS,
        help=f"how long training may take to go on, or the run to end (default: {SECONDS:.0f})",
    )


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = train.training_parser(__doc__, printed)
    own_options(options)
    return options


def chaos(given: argparse.Namespace, passed: list[str]) -> "FaultReport":
    """Try the faults that a command line asks for.

    Args:
        given: All its options.
        passed: Those of train.py, as they were given.

    Raises:
        ConfigError: A setting or the number of kills is impossible.
    """
    if given.storage is not None or given.resume:
        option = "--resume" if given.resume else f"--storage={given.storage}"
        raise ConfigError(
            f"{option}: every run is a new one, with its checkpoints in its own folder; leave it out"
        )
    settings = [
        "train.checkpoint_steps=3",
        *([f"train.epochs={DEMO_EPOCHS}"] if given.recipe == "demo" else []),
    ]
    config = train.configure(argparse.Namespace(**{**vars(given), "settings": settings + given.settings}))
    from experiments.faults.training_process import most_moments

    # An epoch has a step at least.
    most = most_moments(config.train.epochs)
    if "worker" in given.fault and not 1 <= given.kills <= most:
        raise ConfigError(
            f"--kills={given.kills}: expected 1 to {most} with train.epochs={config.train.epochs}; kill less "
            "often, or train more epochs"
        )
    workspace = resolve_workspace(given.workspace)
    prepare_ray()
    from experiments.faults.fault_report import try_faults
    from experiments.faults.faults import Plan

    plan = Plan(
        options=(*(part for setting in settings for part in ("--set", setting)), *passed),
        workspace=workspace,
        catalog=resolve_catalog(workspace, given.catalog),
        on_cpus=given.gpus_per_worker == 0,
        kills=given.kills,
        seed=given.moments,
        may_end_nodes=given.end_node,
        away_seconds=given.away_seconds,
        most_seconds=given.most_seconds,
        is_elastic=given.workers is not None and given.workers.fewest is not None,
    )
    names = [fault for fault in FAULTS if fault in given.fault]
    with open_progress("training", "run", len(names) + 1, line_each=True) as show:
        tried: list[str] = []

        def show_fault(name: str) -> None:
            show(len(tried), title=name)
            tried.append(name)

        return try_faults(names, plan, show_fault, show_outcome)


def show_outcome(outcome: "FaultOutcome") -> None:
    """Print an outcome at once: the others may take long, or be interrupted."""
    lost, seconds, equal = _cells(outcome)
    after = f", training after {seconds}" if outcome.seconds_until_training else ""
    weights = f", equal weights: {equal}" if outcome.equal_weights is not None else ""
    is_tried = outcome.not_tried is None
    print(f"{outcome.fault}: {lost}{' lost' if is_tried else ''}{after}{weights}", file=sys.stderr)


def show(report: "FaultReport") -> None:
    """Print a report for a terminal."""
    console = text_console()
    title = f"{report.undisturbed}: {report.workers} workers, {report.steps} steps"
    table = text_table(title, "fault", "what was lost", "training after", "equal weights", left=2)
    for outcome in report.outcomes:
        table.add_row(outcome.what, *_cells(outcome))
    print_table(console, table)
    for outcome in report.outcomes:
        for line in outcome.lost:
            console.print(f"LOST, {outcome.fault}: {line}; see {outcome.kept}", soft_wrap=True)
    if not report.is_exact:
        console.print(
            "note: with GPUs, or where the number of workers changes, equal bits are not promised; losses "
            "and metrics are held to 2 %",
            soft_wrap=True,
        )


def _cells(outcome: "FaultOutcome") -> tuple[str, str, str]:
    if outcome.not_tried:
        return f"not tried: {outcome.not_tried}", "", ""
    seconds = outcome.seconds_until_training
    after = f"{max(seconds):.0f} s" if seconds else "-"
    equal = {True: "yes", False: "no", None: "-"}[outcome.equal_weights]
    return f"{len(outcome.lost)} things" if outcome.lost else "nothing", after, equal


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)
    if given.list_settings:
        return print_recipe_settings(given)
    own = CommandParser(add_help=False, allow_abbrev=False)
    own_options(own)
    passed = own.parse_known_args(arguments)[1]
    return run_command(lambda: chaos(given, passed), given.json, show, lambda report: int(report.has_lost))


if __name__ == "__main__":
    sys.exit(main())
