"""Train and evaluate one model.

    python experiments/train.py --recipe demo
    python experiments/train.py --recipe demo --set model.sfm=off --seed 1
    python experiments/train.py --recipe demo --set train.epochs=5 --set batch.size=24 --json
    python experiments/train.py --recipe demo --log-to tensorboard
    python experiments/train.py --recipe rgbnt201-released --plan --hardware H100-SXM
    python experiments/train.py --recipe rgbnt201-paper --catalog s3://lab/catalog --workers 8
    python experiments/train.py --recipe demo --seed 1 --init runs/train/demo-seed0-1a2b3c4d
    python experiments/train.py --recipe demo --set 'data.datasets=[synthetic_person,synthetic_vehicle]'

Run again with the same settings, an interrupted run continues and a finished one is shown. With
RAY_ADDRESS set, or submitted with `ray job submit`, the workers run on that cluster.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from pydantic import BaseModel, RootModel

from data_catalog.records import Printed
from experiments import recipes
from experiments.command_line import (
    print_recipe_settings,
    run_command,
    run_options,
    training_options,
    with_workers,
    worker_range,
)
from experiments.experiment_config import ExperimentConfig
from experiments.planning.expected_time import SHOWN_BY_DEFAULT, find_hardware, known_hardware
from experiments.report import RunReport, print_report
from experiments.run.elastic_workers import check_range
from experiments.run.preflight import preflight
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import resolve_catalog, resolve_workspace
from experiments.run.run_tables import OnStep, RunTables
from experiments.run.workers.ray_train import prepare_ray
from experiments.studies.published import find_stmi_result

if TYPE_CHECKING:
    from experiments.planning.run_plan import RunPlan


logger = logging.getLogger(__name__)


def printed_training() -> type[BaseModel]:
    """What this script prints with `--json`."""
    from experiments.planning.run_plan import RunPlan

    class PrintedTraining(RootModel[RunReport | RunPlan]):
        """What this script prints with `--json`: the run's result, or with `--plan` its plan."""

    return PrintedTraining


def training_parser(description: str | None, record: Printed = RunReport) -> argparse.ArgumentParser:
    """The options of a script that trains one model.

    Args:
        description: The script's docstring.
        record: What it prints with `--json`, as `add_json_options` takes it.
    """
    setting_help = "change a setting, for example model.sfm=off or model.str.tokens=2"
    options = training_options(description, setting_help, record)
    options.add_argument("--seed", type=int, help="shorthand for --set seed=N (default: the recipe's)")
    options.add_argument(
        "--workers",
        type=worker_range,
        metavar="N",
        help="shorthand for --set train.workers=N (default: the recipe's). With 2-8 the run goes on with "
        "fewer where a node is lost, and with more where one comes, on the same global batch; equal bits are "
        "then not promised",
    )
    options.add_argument(
        "--resume",
        action="store_true",
        help="only continue a run that was begun before; refuse to begin a new one",
    )
    options.add_argument(
        "--deterministic",
        action="store_true",
        help="take PyTorch's deterministic algorithms, slower on a GPU, and name operations that have none",
    )
    options.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="begin with the weights of a finished run (its folder or URI), of a checkpoint (its folder), or "
        "of the authors' code (its file), as far as they fit; identity heads begin anew on other data "
        "(default: CLIP's alone)",
    )
    return options


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = training_parser(__doc__, printed_training)
    options.add_argument(
        "--plan",
        action="store_true",
        help="train nothing: print settings, size, tables, memory and the time to expect; needs no data. The "
        "exit status is 1 where the run would be refused (`errors` of --json)",
    )
    options.add_argument(
        "--hardware",
        action="append",
        metavar="NAME",
        help=f"with --plan, time on this: {', '.join(known_hardware())}; may be repeated "
        f"(default: {', '.join(SHOWN_BY_DEFAULT)})",
    )
    options.add_argument(
        "--calibrate",
        action="store_true",
        help="with --plan, take a few real steps on this machine, with random pixels",
    )
    return options


def configure(given: argparse.Namespace) -> ExperimentConfig:
    """The config that a command line asks for.

    Raises:
        ConfigError: A setting is unknown or impossible.
    """
    workers = given.workers
    settings = list(given.settings) if workers is None else with_workers(given.settings, workers.most)
    settings += [] if given.seed is None else [f"seed={given.seed}"]
    config = recipes.resolve(given.recipe, settings)
    if workers is not None and workers.fewest is not None:
        check_range(config, workers.fewest)
    return config


def train(given: argparse.Namespace, on_step: OnStep = lambda step, result: None) -> RunReport:
    """Run what the command line asks for.

    Args:
        given: The command line's options.
        on_step: Called after each step that makes a table.
    """
    config = configure(given)
    options = replace(
        run_options(given),
        deterministic=given.deterministic,
        fewest_workers=given.workers and given.workers.fewest,
    )

    def with_init(tables: RunTables) -> RunTables:
        if given.init is None:
            return tables
        from experiments.run.initial_weights import with_initial_weights

        return with_initial_weights(tables, config, given.init)

    tables = preflight(
        config,
        options,
        lambda check: check(config),
        prepare_ray,
        lambda found: RunFolder.has_finished(options.workspace, config, with_init(found)),
        on_step,
    )
    from experiments.run.lifecycle import run

    tables = with_init(tables)
    if tables.initial is not None:
        print(tables.initial.facts.describe(), file=sys.stderr)
    if given.resume:
        RunFolder.begun(options.workspace, config, tables)
    result = run(config, tables, options)
    for name in _without_deterministic_algorithm(RunFolder(result.folder)):
        logger.warning(f"--deterministic: PyTorch has no deterministic algorithm for {name}")
    return RunReport(**dict(result), paper=find_stmi_result(config.data.dataset))


def _without_deterministic_algorithm(folder: RunFolder) -> list[str]:
    """Names of the operations of a run of which its workers reported that."""
    return sorted({name for event in folder.journal.read() for name in event.get("not_deterministic", ())})


def make_plan(given: argparse.Namespace) -> "RunPlan":
    """What a run of this command line would do.

    Raises:
        ConfigError: A setting is unknown or impossible, or no hardware of `--hardware` has the memory.
    """
    config, hardware = configure(given), given.hardware or SHOWN_BY_DEFAULT
    for name in hardware:
        find_hardware(name)
    catalog = resolve_catalog(resolve_workspace(given.workspace), given.catalog)
    from experiments.planning import run_plan

    return run_plan.make_plan(
        *(config, catalog, hardware, given.calibrate, given.gpus_per_worker),
        must_fit=bool(given.hardware),
        fewest_workers=given.workers and given.workers.fewest,
    )


def show_plan(plan: "RunPlan") -> None:
    """Print a plan for a terminal."""
    from experiments.planning.plan_printout import print_plan

    print_plan(plan)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 1 where a plan names what would stop the run."""
    options = parser()
    given = options.parse_args(arguments)
    if given.list_settings:
        return print_recipe_settings(given)
    if given.plan and given.resume:
        options.error("--plan trains nothing, so there is nothing to --resume; leave one of them out")
    if given.plan and given.init:
        options.error("--plan reads no weights, so --init changes nothing in it; leave one of them out")
    if given.plan:
        return run_command(
            lambda: make_plan(given), given.json, show_plan, lambda plan: 1 if plan.errors else 0
        )
    if given.hardware or given.calibrate:
        options.error("--hardware and --calibrate belong to --plan; add it")
    return run_command(lambda: train(given), given.json, print_report)


if __name__ == "__main__":
    sys.exit(main())
