"""Train the rows of the paper's ablation tables over several seeds, and judge their differences.

    python experiments/ablate.py --table 3 --recipe demo --seeds 3
    python experiments/ablate.py --table 4 5 --recipe demo --seeds 3
    python experiments/ablate.py --figure 5 --recipe demo --seeds 3 --json
    python experiments/ablate.py --figure tau --recipe demo --seeds 3                   # rules of hyperedges
    python experiments/ablate.py --table 3 --recipe demo --set train.epochs=3 --seeds 2     # a quick try
    python experiments/ablate.py --table 3 --row 'K = 2: model.str.tokens=2'               # one of your own
    python experiments/ablate.py --row 'no SFM: model.sfm=off'                            # and the full model
    python experiments/ablate.py --table 3 --row 'SFM, K = 2: model.chi=off model.str.tokens=2 against SFM'
    python experiments/ablate.py --table 3 --over data.synthetic.clutter=0,0.5,1          # a table for each
    python experiments/ablate.py --table 3 --recipe rgbnt201-paper --catalog s3://lab/catalog --workers 4
    python experiments/ablate.py --table 3 4 5 --recipe rgbnt201-paper --plan --devices 1 8 64 --price 1.2

As many runs train at once as the cluster has room for; a row that stands in several tables is trained
once, and a run that was finished before is found. Interrupted, the same command goes on. Beside the paper's
rows stand the text alone, G alone and the full model without text: captions can make any gain. Table 4 has
two rules of hyperedges more: that of the released code, and the best of 16 on the demo's validation
identities. Where model.text, or a rule, is set for all rows (--set or --over), the rows about it are left
out; so is a rule that the recipe has itself.

Verdict of a difference: `real` means p < 0.05, Holm-corrected, in a paired t-test over seeds and a bootstrap
over test identities; `not real`, that both 95 % intervals exclude a difference of 1 point of mAP or more;
`undecided`, neither. Two seeds rarely decide, use three or more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from pydantic import BaseModel, RootModel

from data_catalog.records import Printed
from experiments.command_line import (
    add_workers,
    print_recipe_settings,
    report_command,
    run_command,
    run_options,
    training_options,
    with_workers,
)
from experiments.experiment_config import ConfigError
from experiments.planning.plan_options import PlanChoices, add_plan_options, refuse_without_plan
from experiments.run.preflight import Check, preflight
from experiments.run.run_options import RunOptions, resolve_catalog, resolve_workspace
from experiments.run.run_tables import OnStep, RunTables
from experiments.run.workers.ray_train import start_ray
from experiments.studies.ablation.ablation_result import AblationResult
from experiments.studies.ablation.ablation_spec import AblationSpec, specify_ablation
from experiments.studies.ablation.added_rows import SYNTAX, add_rows, parse_row
from experiments.studies.ablation.conditions import SYNTAX as SYNTAX_OVER
from experiments.studies.ablation.conditions import (
    AblationGrid,
    Condition,
    describe,
    list_conditions,
    parse_over,
)
from experiments.studies.ablation.rows import ABLATIONS, Ablation
from experiments.studies.ablation.table_text import (
    HEADER,
    SHORT_HEADER,
    cells,
    comparisons,
    explain_size,
    short_cells,
    undecided,
)
from experiments.terminal_tables import print_facts, print_marked, print_table, text_console, text_table
from stmi.config import LARGEST_COUNT

if TYPE_CHECKING:
    from experiments.planning.study_plan import StudyPlan
    from experiments.run.table_making import TableSources
    from experiments.studies.ablation.ablation import AblationStudy

FIGURES = {
    "5": ("figure5", "figure5_tokens"),
    "tau": ("figure_tau", "figure_nearest", "figure_density"),
}


def printed_ablation() -> type[BaseModel]:
    """What this script prints with `--json`."""
    from experiments.planning.study_plan import StudyPlan

    class PrintedAblation(RootModel[AblationResult | AblationGrid | StudyPlan]):
        """What this script prints: of a study, of one for each condition (`--over`), or a plan (`--plan`)."""

    return PrintedAblation


def ablation_parser(
    description: str | None, record: Printed, recipe: str = "demo"
) -> argparse.ArgumentParser:
    """The options of a script that trains a study of ablations.

    Args:
        description: The script's docstring.
        record: What it prints with `--json`, as `add_json_options` takes it.
        recipe: As in `training_options`.
    """
    options = training_options(
        description, "change a setting of every row, for example train.epochs=10", record, recipe
    )
    options.add_argument(
        "--seeds", type=int, default=3, help="how many, from the recipe's on; two rarely decide (default: 3)"
    )
    options.add_argument(
        "--wide", action="store_true", help="print all columns of the tables; the files have them in any case"
    )
    add_workers(options, "run")
    add_plan_options(options)
    return options


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = ablation_parser(__doc__, printed_ablation)
    options.add_argument(
        "--table",
        nargs="+",
        action="extend",
        default=[],
        choices=("3", "4", "5"),
        help="tables of the paper, together in one study",
    )
    options.add_argument(
        "--figure",
        choices=tuple(FIGURES),
        help="5, of the paper: p, and K; tau: mAP and size of the hyperedges over tau, the number of nearest "
        "nodes, and the density (default: none)",
    )
    options.add_argument(
        "--row",
        action="append",
        default=[],
        dest="rows",
        metavar=f"'{SYNTAX}'",
        help="add a row to the tables; it is compared with the full model, or with the row after 'against' "
        "(name or letter). Without --table: a table of the full model and these rows. May be repeated",
    )
    options.add_argument(
        "--over",
        action="append",
        default=[],
        metavar=SYNTAX_OVER,
        help="make the tables for each value of a setting, and a picture of the gain of each row over it; "
        "given twice, for each combination of two (default: the recipe's value alone)",
    )
    return options


def make_plan(given: argparse.Namespace) -> "StudyPlan":
    """What the study of this command line would do.

    Raises:
        ConfigError: A setting or an option of the plan is impossible.
    """
    if given.over:
        raise ConfigError(
            f"--over {given.over[0]}: a plan is of one condition; give one value with --set in its place"
        )
    return plan_study(_specify(given), given)


def plan_study(spec: AblationSpec, given: argparse.Namespace, maker: str | None = None) -> "StudyPlan":
    """What a study would do.

    Args:
        spec: The study.
        given: The options of `ablation_parser`.
        maker: What makes all tables that are missing; or None.

    Raises:
        ConfigError: A setting or an option of the plan is impossible.
    """
    choices = PlanChoices(given)
    workspace = resolve_workspace(given.workspace)
    from experiments.planning.study_plan import StudyData, make_study_plan

    # All rows read the tables of one that needs all.
    parts = ((config.model.sfm.enabled, config.model.text.enabled, config) for config in spec.configs)
    first = next((config for masks, text, config in parts if masks and text), spec.configs[0])
    data = StudyData(first, workspace, resolve_catalog(workspace, given.catalog), maker)
    name = None if data.run_tables is None else spec.name(data.run_tables)
    runs = [data.look_up(config, spec.labels(config)) for config in spec.configs]
    return make_study_plan(name, data, runs, choices, given.gpus_per_worker)


def show_plan(plan: "StudyPlan") -> None:
    """Print a plan for a terminal."""
    from experiments.planning.study_printout import print_study_plan

    print_study_plan(plan)


def ablate(given: argparse.Namespace) -> AblationResult | AblationGrid:
    """Run the study that the command line asks for, or one for each condition.

    Raises:
        ConfigError: Nothing is asked for, or a setting is impossible.
    """
    if not given.over:
        return run_ablation(_specify(given), run_options(given))
    over = parse_over(given.over)
    conditions = list_conditions(over)
    # What is impossible in one of them is refused before any of them is trained.
    specs = [_specify(given, tuple("=".join(pair) for pair in each.items())) for each in conditions]
    options = run_options(given)
    results: list[tuple[Condition, AblationResult]] = []
    for number, (condition, spec) in enumerate(zip(conditions, specs, strict=True), start=1):
        print(f"condition {number} of {len(specs)}: {describe(condition)}", file=sys.stderr)
        results.append((condition, run_ablation(spec, options)))
    from experiments.studies.ablation.grid import write_grid

    return write_grid(resolve_workspace(given.workspace), over, results)


def _specify(given: argparse.Namespace, condition: tuple[str, ...] = ()) -> AblationSpec:
    """The study of a command line under a condition, which is settings of all its runs."""
    keys = [f"table{number}" for number in sorted(set(given.table))] + list(FIGURES.get(given.figure, ()))
    if not keys and not given.rows:
        raise ConfigError("name what to train: --table 3, 4 or 5 (or several), --figure 5 or tau, or --row")
    ablations = add_rows([ABLATIONS[key] for key in keys], [parse_row(text) for text in given.rows])
    return specify_rows(ablations, given, condition)


def specify_rows(
    ablations: Sequence[Ablation], given: argparse.Namespace, settings: Sequence[str] = ()
) -> AblationSpec:
    """The study of some tables.

    Args:
        ablations: The tables.
        given: The options of `ablation_parser`.
        settings: Changes of all rows, beside those of the command line.

    Raises:
        ConfigError: A setting or the number of seeds is impossible.
    """
    if not 1 <= given.seeds <= LARGEST_COUNT:
        raise ConfigError(
            f"--seeds={given.seeds}: expected a number from 1 to {LARGEST_COUNT}; three give an interval"
        )
    return specify_ablation(
        ablations, given.recipe, [*with_workers(given.settings, given.workers), *settings], given.seeds
    )


def run_ablation(
    spec: AblationSpec,
    options: RunOptions,
    on_step: OnStep = lambda step, result: None,
    sources: "TableSources | None" = None,
) -> AblationResult:
    """Train what is missing of a study.

    Args:
        spec: The study.
        options: Where it is kept and logged.
        on_step: As in `preflight`.
        sources: As in `preflight`.
    """
    first = spec.configs[0]

    def check_each(check: Check) -> None:
        for config in spec.configs:
            check(config)

    def study(tables: RunTables) -> "AblationStudy":
        from experiments.studies.ablation.ablation import AblationStudy

        return AblationStudy(spec, tables, options)

    tables = preflight(
        first,
        options,
        check_each,
        lambda: start_ray(first.train.workers, options.gpus_per_worker),
        lambda found: study(found).finished_result() is not None,
        on_step,
        sources,
    )
    return study(tables).run()


def print_result(
    result: AblationResult | AblationGrid, wide: bool = False, workspace: str | None = None
) -> None:
    """The finished tables, for a terminal: those of each condition, and the files of all of them."""
    if isinstance(result, AblationResult):
        print_ablation(result, wide, workspace)
        return
    console = text_console()
    for cell in result.cells:
        console.print(f"{describe(cell.condition)}\n", style="bold")
        print_ablation(cell.result, wide, workspace)
        console.print()
    print_facts(console, result.files)


def print_ablation(result: AblationResult, wide: bool = False, workspace: str | None = None) -> None:
    """The finished tables, for a terminal.

    Args:
        result: Result of the study.
        wide: All columns of the tables, in lines that may be longer than those of the terminal.
        workspace: Where the study is; None for the project's `runs`.
    """
    console = text_console()
    for key in result.tables:
        rows = result.find_rows(key)
        title = f"{result.titles[key]}: %, on the test identities"
        table = text_table(title, *(HEADER if wide else SHORT_HEADER))
        for row in rows:
            table.add_row(*(cells(row) if wide else short_cells(row, rows)))
        print_table(console, table, wide)
        # The short table says it in its cells.
        for sentence in [*([comparisons(rows)] if wide else explain_size(rows)), *undecided(rows)]:
            console.print(f"- {sentence}")
    for note in result.notes:
        console.print(f"- {note}")
    for run, reason in result.wrong.items():
        print_marked(console, "not finished", "red", f"{run}: {reason}")
    print_facts(console, {**result.files, "report": report_command(result.study, workspace)})


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 1 where a run was, or would be, stopped."""
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
        lambda: ablate(given),
        given.json,
        lambda result: print_result(result, given.wide, given.workspace),
        lambda result: int(not result.is_complete),
    )


if __name__ == "__main__":
    sys.exit(main())
