"""Search the settings of the SFM, and any others, for the highest mAP on validation identities.

    python experiments/sweep_sfm.py --recipe demo --trials 20
    python experiments/sweep_sfm.py --recipe demo --trials 40              # the same sweep, twenty more
    python experiments/sweep_sfm.py --recipe demo --search 'optim.learning_rate=log:1e-4:1e-2'
    python experiments/sweep_sfm.py --recipe demo --search model.str.tokens=off --set model.str.tokens=4
    python experiments/sweep_sfm.py --recipe demo --objectives mAP,cost --trials 30 --json
    python experiments/sweep_sfm.py --recipe rgbnt201-paper --study-storage postgresql://host/optuna
    python experiments/sweep_sfm.py --recipe rgbnt201-paper --trials 40 --plan --devices 8 --price 1.2

Searched by default are the perturbation probability (on a log scale, and exactly 0), the number K of tokens,
and how layers share alpha and beta. Optuna's multivariate TPE samples the trials, and Ray Tune runs as many
at once as there is room for; weak ones are stopped early by successive halving (ASHA). The first trial is the
recipe itself, where the space holds it. Test identities choose nothing. The study opens with Optuna's own
tools. Interrupted, or with more trials, the same command goes on.
"""

import argparse
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from pydantic import BaseModel, RootModel

from experiments.command_line import (
    add_workers,
    print_notes,
    print_recipe_settings,
    report_command,
    run_command,
    run_options,
    training_options,
    with_workers,
)
from experiments.experiment_config import ConfigError
from experiments.planning.plan_options import PlanChoices, add_plan_options, refuse_without_plan
from experiments.run.preflight import preflight
from experiments.run.run_options import resolve_catalog, resolve_workspace
from experiments.run.run_tables import RunTables
from experiments.run.workers.ray_train import start_ray
from experiments.studies.study_folder import STUDIES
from experiments.studies.sweep.search_space import (
    DEFAULT_SPACE,
    check_space,
    check_switches,
    make_space,
)
from experiments.studies.sweep.stored_trials import StoredTrials
from experiments.studies.sweep.study_storage import check_url
from experiments.studies.sweep.sweep_result import SweepResult, describe_values
from experiments.studies.sweep.sweep_spec import SweepSpec
from experiments.terminal_tables import print_facts, print_marked, print_table, text_console, text_table
from stmi.config import LARGEST_COUNT

if TYPE_CHECKING:
    from experiments.planning.study_plan import StudyPlan
    from experiments.studies.sweep.sweep import SweepStudy

NO_VALIDATION = (
    "data set {!r} has no val split, and a sweep never chooses on test; ingest it with "
    "--validation-identities N, which holds N training identities out, and make the val view"
)


def printed_sweep() -> type[BaseModel]:
    """What this script prints with `--json`."""
    from experiments.planning.study_plan import StudyPlan

    class PrintedSweep(RootModel[SweepResult | StudyPlan]):
        """What this script prints with `--json`: the sweep's result, or with `--plan` its plan."""

    return PrintedSweep


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    searched = "\n".join(["Searched by default:", "", *(f"    {dimension}" for dimension in DEFAULT_SPACE)])
    options = training_options(
        f"{__doc__}\n{searched}\n",
        "change a setting of every trial, for example train.epochs=10; of one that is searched, the "
        "first trial's",
        printed_sweep,
    )
    options.add_argument("--trials", type=int, default=20, help="how many in all (default: 20)")
    options.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="NAME=KIND:LOW:HIGH",
        help="search a setting: float:0:1, log:1e-6:1e-4, zero-or-log:0.001:0.1, int:1:16, int:8:64:8, "
        "choice:a,b,c; or off to leave one out; may be repeated; names as in --set "
        "(default: the three above)",
    )
    options.add_argument(
        "--seed", type=int, help="of the sampler and of every trial's training (default: the recipe's)"
    )
    options.add_argument(
        "--objectives",
        choices=("mAP", "mAP,cost"),
        default="mAP",
        help="search for a high mAP, or for a low training cost as well; then none is stopped early, for a "
        "cheap trial is not weak. The Pareto front of both is shown in any case (default: mAP)",
    )
    options.add_argument(
        "--early-stopping",
        action=argparse.BooleanOptionalAction,
        help="stop weak trials (default: with one objective)",
    )
    options.add_argument(
        "--concurrent", type=int, help="trials at once (default: as many as there is room for)"
    )
    add_workers(options, "trial")
    options.add_argument("--name", help="of the study (default: recipe and digest of what is searched)")
    options.add_argument(
        "--resume",
        action="store_true",
        help="only continue a sweep that was begun before; refuse to begin a new one",
    )
    options.add_argument(
        "--study-storage",
        metavar="URL",
        default=os.environ.get("STMI_STUDY_STORAGE") or None,
        help="Optuna's storage, for example postgresql://user@host/optuna (default: $STMI_STUDY_STORAGE, "
        "which keeps the password off the command line, or a SQLite file in the study's folder)",
    )
    add_plan_options(options)
    return options


def specify(given: argparse.Namespace) -> SweepSpec:
    """The sweep that a command line asks for.

    Raises:
        ConfigError: A setting or a search is unknown or impossible.
    """
    for name in ("trials", "concurrent"):
        if (value := getattr(given, name)) is not None and not 1 <= value <= LARGEST_COUNT:
            raise ConfigError(f"--{name}={value}: expected a number from 1 to {LARGEST_COUNT}")
    two_objectives = given.objectives == "mAP,cost"
    early_stopping = not two_objectives if given.early_stopping is None else given.early_stopping
    if early_stopping and two_objectives:
        raise ConfigError(
            "--early-stopping goes by mAP and would cut the cheap end off the front of mAP and cost; "
            "leave one of the two out"
        )
    space = make_space(given.search)
    searched = {dimension.name for dimension in space.dimensions}
    if early_stopping and (uneven := searched & {"train.epochs", "train.validate_every"}):
        raise ConfigError(
            f"--search {min(uneven)}: early stopping compares trials at the same epoch; add "
            "--no-early-stopping"
        )
    settings = with_workers(given.settings, given.workers)
    settings += [] if given.seed is None else [f"seed={given.seed}"]
    check_switches(space, given.recipe, settings)
    if given.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", given.name):
        raise ConfigError(f"--name={given.name}: it names a folder; use letters, digits, '.', '_' and '-'")
    return SweepSpec(
        given.recipe, tuple(settings), space, given.trials, given.name, two_objectives, early_stopping
    )


def sweep(given: argparse.Namespace) -> SweepResult:
    """Run the sweep that the command line asks for.

    Raises:
        ConfigError: A setting is impossible, or there are no validation identities to choose by.
    """
    spec, options = specify(given), run_options(given)
    base = spec.base
    if given.study_storage is not None:
        check_url(given.study_storage)

    def study(tables: RunTables) -> "SweepStudy":
        from experiments.studies.sweep.sweep import SweepStudy

        return SweepStudy(
            spec,
            tables,
            options,
            study_storage=given.study_storage,
            concurrent=given.concurrent,
            resume=given.resume,
        )

    tables = preflight(
        base,
        options,
        partial(check_space, spec.space, spec.recipe, spec.settings),
        lambda: start_ray(base.train.workers, options.gpus_per_worker),
        lambda found: study(found).finished_result() is not None,
    )
    if "val" not in tables.views:
        raise ConfigError(NO_VALIDATION.format(base.data.dataset))
    return study(tables).run()


def make_plan(given: argparse.Namespace) -> "StudyPlan":
    """What the sweep of this command line would do; as if every trial cost what the first one does.

    Raises:
        ConfigError: As `specify`; or an option of the plan is impossible.
    """
    spec, choices = specify(given), PlanChoices(given)
    workspace = resolve_workspace(given.workspace)
    from experiments.planning.study_plan import RunToPlan, StudyData, make_study_plan

    base = spec.base
    data = StudyData(base, workspace, resolve_catalog(workspace, given.catalog))
    name = None if data.run_tables is None else spec.study_name(data.run_tables)
    # The same command makes up for trials that crashed.
    stored = [] if name is None else StoredTrials(workspace / STUDIES / name).read()
    ended = [
        RunToPlan(base, ["trials that have ended"], trial.user_attrs["run"], "finished", base.train.epochs)
        for trial in stored
        if trial.has_ended
    ]
    runs = [*ended, *[RunToPlan(base, ["trials to come"])] * (spec.trials - len(ended))]
    notes = ["every trial counts as much as the first one, and as if none were stopped early"]
    splits = data.tables["samples"].statistics["splits"] if data.tables["samples"] else None
    errors = [] if splits is None or "val" in splits else [NO_VALIDATION.format(base.data.dataset)]
    return make_study_plan(name, data, runs, choices, given.gpus_per_worker, notes, errors)


def show_plan(plan: "StudyPlan") -> None:
    """Print a plan for a terminal."""
    from experiments.planning.study_printout import print_study_plan

    print_study_plan(plan)


def print_sweep(result: SweepResult, workspace: str | None = None) -> None:
    """The trials, for a terminal.

    Args:
        result: Result of the sweep.
        workspace: Where the study is; None for the project's `runs`.
    """
    console = text_console()
    title = f"{result.study}: mAP of {result.feature}, validation identities, %"
    table = text_table(title, "trial", "state", "settings", "mAP", "epochs", "TFLOP", left=3)
    best = result.best
    # A sweep without a finished trial is an error.
    assert best is not None
    for trial in sorted(result.trials, key=lambda t: (t.value is None, -(t.value or 0))):
        value = "" if trial.value is None else f"{100 * trial.value:.2f}"
        table.add_row(
            *(str(trial.number), trial.state, describe_values(trial.values)),
            *(value, str(trial.epochs), f"{trial.cost:.3g}"),
            style="bold" if trial.number == best.number else None,
        )
    print_table(console, table)
    console.print(
        f"best: trial {best.number}; on the test identities, which had no say, "
        f"mAP {best.test.mean_average_precision:.1%} at epoch {best.test.epoch}. Train it with other seeds "
        "before it is compared:"
    )
    command = f"  python experiments/train.py {result.best_options}"
    console.print(command, soft_wrap=True)
    front = ", ".join(f"trial {t.number} ({t.value:.1%}, {t.cost:.3g} TFLOP)" for t in result.pareto)
    console.print(f"Pareto front of mAP and training cost: {front}")
    for trial in result.trials:
        if trial.reason:
            console.print(f"{trial.state}: trial {trial.number}: {trial.reason}")
    print_notes(console, result.notes)
    if result.missing:
        left = f"{result.missing} of the trials; the same command makes up for them"
        print_marked(console, "not finished", "red", left)
    commands = {
        "study": shlex.join(["optuna", "studies", "--storage", result.storage]),
        "report": report_command(result.study, workspace),
    }
    print_facts(console, {**result.files, **commands})


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 1 where trials crashed, or would be stopped."""
    options = parser()
    given = options.parse_args(arguments)
    if given.list_settings:
        return print_recipe_settings(given)
    refuse_without_plan(options, given)
    if given.plan:
        return run_command(
            lambda: make_plan(given), given.json, show_plan, lambda plan: 1 if plan.errors else 0
        )
    return run_command(
        lambda: sweep(given),
        given.json,
        lambda result: print_sweep(result, given.workspace),
        lambda result: int(not result.is_complete),
    )


if __name__ == "__main__":
    sys.exit(main())
