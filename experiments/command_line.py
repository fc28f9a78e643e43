"""Shared by the scripts: options, errors in one line, a table of metrics, one JSON document on request."""

import argparse
import contextlib
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

from data_catalog.command_parser import CommandParser
from data_catalog.errors import CatalogError, StorageAwayError
from data_catalog.interrupts import interruptible, printing
from data_catalog.records import Printed, Record, add_json_options
from data_catalog.storage.patience import DEFAULT_SECONDS, wait_for_storage
from experiments.experiment_config import ConfigError
from experiments.recipe_files import name_recipe
from experiments.recipes import RECIPES, ROOT, WORKSPACE
from experiments.run.run_folder import RunFolderError
from experiments.run.run_options import RunOptions
from experiments.run.run_result import METRICS, FailedRunError, FeatureMetrics, InterruptedRunError, RunError
from experiments.run.run_tables import OnStep
from experiments.settings_list import list_settings, print_settings, record_or_settings
from experiments.terminal_tables import text_table
from experiments.tracking.event_files import check_package
from stmi.errors import ClipFileError, TrainedRunError
from stmi.retrieval.metrics import RetrievalError

Result = TypeVar("Result", bound=Record)

NAMES = "A name is a full dotted one, as --list-settings prints it; `model.` may be left out"
"""How settings are named, for the help of each option that takes a name."""
LIST_HELP = "print every setting with its value (with --recipe and --set), what it accepts and what it means"
USAGE_STATUS = 2
COME_AGAIN_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the command was stopped by SIGTERM, and goes on where it is called again."""
INTERRUPTED = "error: interrupted; what is complete is kept, so run the same command again to continue"


def training_options(
    description: str | None, setting_help: str, record: Printed, recipe: str = "demo"
) -> argparse.ArgumentParser:
    """A parser with the options of every script that trains: recipe, settings, and where things are kept.

    Args:
        description: The script's docstring.
        setting_help: What `--set` does there.
        record: What it prints with `--json`, as `add_json_options` takes it.
        recipe: The one that is taken where none is named. Where another argument decides it, as it is called
            in the help; the option is then None.
    """
    options = CommandParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--recipe",
        type=name_recipe,
        default=recipe if recipe in RECIPES else None,
        help=f"one of {', '.join(RECIPES)}, or a YAML file of your own (default: {recipe})",
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help=f"{setting_help}; may be repeated. {NAMES}",
    )
    options.add_argument("--list-settings", action="store_true", help=LIST_HELP)
    add_json_options(options, record_or_settings(record))
    locations = options.add_argument_group("where it runs, and where things are kept")
    add_workspace(locations)
    locations.add_argument("--catalog", help="folder or URI of the catalog (default: WORKSPACE/catalog)")
    locations.add_argument(
        "--tracking-uri",
        help="MLflow server (default: $MLFLOW_TRACKING_URI, or a SQLite file in the workspace)",
    )
    locations.add_argument(
        "--log-to",
        choices=("tensorboard",),
        help="write the journals as event files, too, for `tensorboard --logdir WORKSPACE`; a run that was "
        "finished before gets its file as well (default: MLflow alone)",
    )
    locations.add_argument(
        "--storage", metavar="URI", help="folder or URI for checkpoints (default: each run's own folder)"
    )
    locations.add_argument(
        "--storage-patience",
        type=_seconds,
        default=DEFAULT_SECONDS,
        metavar="SECONDS",
        help="how long to wait for object storage that goes away in a run, before the run stops; the same "
        f"command continues it (default: {DEFAULT_SECONDS:.0f})",
    )
    add_gpus_per_worker(locations)
    options.add_argument(
        "--on-nan",
        choices=("stop", "skip"),
        default="stop",
        help="what a batch does whose loss is not finite: end the run, or leave the weights as they are; its "
        "samples are named in the journal (default: stop)",
    )
    options.add_argument(
        "--on-memory",
        choices=("stop", "double"),
        default="stop",
        help="what a run does whose step runs out of memory: end, or go on from its last checkpoint with "
        "train.micro_batches doubled, as often as it takes; later starts of the run begin with that number. "
        "The result is the same up to rounding (default: stop)",
    )
    return options


def add_workspace(options: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option that says where runs are kept."""
    options.add_argument(
        "--workspace",
        default=WORKSPACE,
        help="folder or URI (s3://bucket/folder) of runs, which all nodes reach "
        "(default: $STMI_WORKSPACE, or runs)",
    )


def add_gpus_per_worker(options: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option that says how much of a GPU each worker gets."""
    options.add_argument(
        "--gpus-per-worker",
        type=_gpu_share,
        help="may be a fraction; 0 trains on CPUs (default: 1 where the cluster has GPUs)",
    )


def _seconds(text: str) -> float:
    return _number_from_zero(text, "seconds, such as 600")


def _gpu_share(text: str) -> float:
    return _number_from_zero(text, "GPUs from 0 on, such as 0.5")


def _number_from_zero(text: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of {expected}")
    return number


def run_options(given: argparse.Namespace) -> RunOptions:
    """Where the runs of a command line are kept and logged, and what their workers get.

    Sets how long this process and its workers wait for storage.

    Raises:
        ConfigError: A location or a kind of store is impossible, or a package is missing.
        CatalogError: No filesystem handles the storage's URI, or it holds credentials.
    """
    wait_for_storage(given.storage_patience)
    if given.log_to is not None:
        check_package()
    options = RunOptions.resolve(
        given.workspace,
        given.catalog,
        given.storage,
        given.tracking_uri,
        given.gpus_per_worker,
        given.on_nan == "skip",
    )
    return replace(
        options,
        raises_micro_batches=given.on_memory == "double",
        writes_event_files=given.log_to is not None,
    )


def add_workers(options: argparse.ArgumentParser, part: str) -> None:
    """Add the option that says how many workers each run of a study has."""
    options.add_argument("--workers", type=int, help=f"of each {part}; one packs a cluster best (default: 1)")


class WorkerRange(NamedTuple):
    """What `--workers` says: how many a run has at most, and with which number it still goes on; or None."""

    fewest: int | None
    most: int


def worker_range(text: str) -> WorkerRange:
    """What `--workers` says, as `4` or `2-8`.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(-?\d+)", text)
    if found is None or (found[1] and int(found[1]) > int(found[2])):
        raise argparse.ArgumentTypeError(f"{text}: expected a number such as 4, or a range such as 2-8")
    return WorkerRange(int(found[1]) if found[1] else None, int(found[2]))


def with_workers(settings: list[str], workers: int | None) -> list[str]:
    """The settings of a run, or of every run of a study: those of `--set`, and the number of workers.

    Raises:
        ConfigError: `--workers` is below one, or contradicts `--set train.workers`.
    """
    is_set = any(setting.partition("=")[0].strip() == "train.workers" for setting in settings)
    if workers is not None and (workers < 1 or is_set):
        wrong = "it contradicts --set train.workers" if is_set else "at least 1 is needed"
        raise ConfigError(f"--workers={workers}: {wrong}")
    return [*settings, *([] if is_set else [f"train.workers={workers or 1}"])]


def print_recipe_settings(given: argparse.Namespace) -> int:
    """Print the settings of a command line's recipe with its changes; returns the exit status."""
    return run_command(lambda: list_settings(given.recipe, given.settings), given.json, print_settings)


def step_printer() -> OnStep:
    """A function that prints, on standard error, each step that makes a table, with the time since now."""
    start = time.perf_counter()

    def show_step(step: str, result: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {step:14} {result}", file=sys.stderr)

    return show_step


def report_command(study: str, workspace: str | None) -> str:
    """The command that writes the page of a study; it names a workspace that is not the project's `runs`."""
    elsewhere = [] if workspace in (None, str(ROOT / "runs")) else ["--workspace", workspace]
    return shlex.join(["python", "experiments/report.py", "--study", study, *elsewhere])


def metrics_table(title: str, rows: Mapping[str, FeatureMetrics]) -> Table:
    """A table of retrieval metrics in percent, one row per label."""
    table = text_table(title, "feature", "mAP", "rank 1", "rank 5", "rank 10")
    for label, metrics in rows.items():
        table.add_row(label, *(f"{100 * metrics.value(name):.1f}" for name in METRICS))
    return table


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Print what to bear in mind of a measurement, one line each."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)


def check_file(option: str, location: str) -> str:
    """Refuse what cannot be written, before it is computed: a folder, or an unknown kind of URI.

    Args:
        option: That names it.
        location: File or URI.

    Returns:
        The location, absolute.

    Raises:
        ConfigError: It is a folder.
        CatalogError: No filesystem handles the URI.
    """
    # Their library takes a moment, which help and refusals do without.
    from data_catalog.storage.filesystems import absolute, open_root  # noqa: PLC0415

    found = absolute(location)
    if "://" not in found and Path(found).is_dir():
        raise ConfigError(f"{option}={location}: this is a folder; name a file in it")
    open_root(location)
    return found


def run_command(
    command: Callable[[], Result],
    as_json: bool,
    show: Callable[[Result], None],
    status: Callable[[Result], int] = lambda result: 0,
) -> int:
    """Run a script's command and print its result; returns the exit status.

    Args:
        command: Gives the result.
        as_json: Print it as one JSON document, and nothing else on standard output.
        show: Print it for a person.
        status: Exit status of a result.

    Raises:
        SystemExit: After Ctrl-C.
    """
    try:
        # A library that prints must not spoil the one JSON document on standard output.
        with interruptible(INTERRUPTED), contextlib.redirect_stdout(sys.stderr):
            result = command()
    except InterruptedRunError as error:
        print(f"error: {error}", file=sys.stderr)
        return COME_AGAIN_STATUS
    except (
        ConfigError,
        CatalogError,
        ClipFileError,
        RunFolderError,
        RunError,
        RetrievalError,
        TrainedRunError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        # Nothing in the command line is wrong with the first two.
        return 1 if isinstance(error, StorageAwayError | FailedRunError) else USAGE_STATUS
    # From here on Ctrl-C ends the process at once.
    with printing():
        if as_json:
            print(result.to_json())
        else:
            show(result)
    return status(result)
