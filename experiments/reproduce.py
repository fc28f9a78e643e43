r"""From the downloads of a published data set to the paper's tables, in one command.

    python experiments/reproduce.py rgbnt201 --source /data/RGBNT201 --clip models/ViT-B-16 \
        --masks grabcut --captions none --tables 3 --seeds 3

Masks of SAM2, captions of a language model, five seeds, on a cluster, and first what that would take:

    --masks sam2:sam2.1_hiera_large.pt --captions llm:http://HOST:8000/v1,NAME --seeds 5
    --workspace s3://lab/runs --plan --hardware H100-SXM --price 2.5

It ingests the images, makes masks, captions, text features and views, checks them, trains the rows of the
tables over the seeds, and writes one page with the paper's numbers beside. All that it needs is looked for
before anything is made. What is complete is kept: interrupted or killed, the same command goes on, and
nothing is made or asked for twice. `--plan` says what is there, what is missing, and what it costs: hours for
masks (measured on some images on this machine), dollars for captions (at most), and GPU-hours for training.
With RAY_ADDRESS set, or submitted with `ray job submit`, it runs on that cluster.

It has the options of ablate.py but those that choose and change rows (--table, --figure, --row, --over).
Without captions the rows about text are left out.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from pydantic import BaseModel, RootModel

from data_catalog.command_parser import local_path
from data_catalog.formats import FORMATS
from data_catalog.records import Record
from experiments import ablate
from experiments.command_line import print_recipe_settings, run_command, run_options, step_printer
from experiments.experiment_config import ConfigError, full_name
from experiments.planning.plan_options import refuse_without_plan
from experiments.recipes import RECIPES, resolve
from experiments.reports.report_files import StudyReport
from experiments.reproducing.table_origins import CAPTIONS, MASKS, find_faults, parse_captions, parse_masks
from experiments.run.run_options import resolve_catalog, resolve_workspace
from experiments.studies.ablation.ablation_result import AblationResult
from experiments.studies.ablation.ablation_spec import AblationSpec
from experiments.studies.ablation.rows import ABLATIONS
from experiments.studies.study_folder import STUDIES
from experiments.terminal_tables import print_facts, text_console

if TYPE_CHECKING:
    from data_catalog.captions.llm.llm_settings import Prices
    from experiments.reproducing.reproduction_plan import ReproductionPlan


PUBLISHED = [name for name in sorted(FORMATS) if f"{name}-paper" in RECIPES]
"""Data sets of the paper."""


class Reproduction(Record):
    """The paper's tables on a data set, made from its downloads."""

    dataset: str
    study: AblationResult
    report: StudyReport


def printed_reproduction() -> type[BaseModel]:
    """What this script prints with `--json`."""
    from experiments.reproducing.reproduction_plan import ReproductionPlan

    class PrintedReproduction(RootModel[Reproduction | ReproductionPlan]):
        """What this script prints: the result, or with `--plan` what it would take."""

    return PrintedReproduction


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = ablate.ablation_parser(__doc__, printed_reproduction, recipe="DATASET-paper")
    options.add_argument("dataset", choices=PUBLISHED, help="a published data set; needed")
    options.add_argument(
        "--source",
        type=local_path,
        required=True,
        metavar="DIR",
        help="its folder, as it is published; needed",
    )
    options.add_argument("--clip", required=True, metavar="DIR", help="folder of the CLIP; needed")
    options.add_argument(
        "--masks",
        type=parse_masks,
        required=True,
        metavar=MASKS,
        help="what makes the masks: OpenCV, the published weights of SAM2 (MODEL by default sam2.1_hiera_l), "
        "or files, one for each sample; needed",
    )
    options.add_argument(
        "--captions",
        type=parse_captions,
        required=True,
        metavar=CAPTIONS,
        help="what makes the captions: nothing, a language model behind an OpenAI-compatible endpoint, or "
        "files (CHOICE of RGB, NIR, TIR, join, where each modality has its own); needed",
    )
    for name, what in (("input", "sent"), ("output", "answered")):
        options.add_argument(
            f"--usd-per-million-{name}",
            type=float,
            metavar="USD",
            help=f"price of the language model's tokens {what} (default: unknown)",
        )
    options.add_argument(
        "--budget-usd",
        type=float,
        metavar="USD",
        help="what captions may cost; reached, it ends, and goes on with a larger one (default: no limit)",
    )
    options.add_argument(
        "--tables",
        nargs="+",
        choices=("3", "4", "5"),
        default=["3", "4", "5"],
        help="tables of the paper (default: all)",
    )
    return options


def specify_tables(given: argparse.Namespace) -> AblationSpec:
    """The runs that the command line asks for.

    Raises:
        ConfigError: A setting is impossible or decided by another option, or the recipe is of another data
            set.
    """
    for setting in given.settings:
        if full_name(setting).startswith(("model.text", "model.clip")):
            raise ConfigError(f"--set {setting}: --captions and --clip decide that; leave it out")
    has_text = given.captions.kind != "none"
    settings = [] if has_text else ["model.text=off"]
    if not has_text and resolve(given.recipe, []).report.feature in ("T", "GTTT"):
        settings.append("report.feature=G")
    from stmi.clip.clip_files import clip_folder

    # A plan needs no CLIP; without one it is that of the recipe.
    if clip_folder(given.clip) is not None:
        settings.append(f"model.clip.source={given.clip}")
    tables = [ABLATIONS[f"table{number}"] for number in sorted(set(given.tables))]
    spec = ablate.specify_rows(tables, given, settings)
    if (known := spec.configs[0].data.dataset) != given.dataset:
        raise ConfigError(f"--recipe {given.recipe} trains on data set {known!r}, not on {given.dataset!r}")
    return spec


def make_plan(given: argparse.Namespace) -> "ReproductionPlan":
    """What the command line's reproduction would take.

    Raises:
        ConfigError: A setting or an option of the plan is impossible.
    """
    given = _with_prices(given)
    spec = specify_tables(given)
    from experiments.reproducing.reproduction_plan import make_reproduction_plan

    faults = _find_faults(given)
    study = ablate.plan_study(spec, given, "the same command without --plan")
    return make_reproduction_plan(given.dataset, given.source, given.masks, given.captions, study, faults)


def reproduce(given: argparse.Namespace) -> Reproduction:
    """Make what the command line asks for.

    Raises:
        ConfigError: Something that it names is missing, or a setting is impossible.
    """
    given = _with_prices(given)
    spec, options = specify_tables(given), run_options(given)
    if faults := _find_faults(given):
        raise ConfigError("; ".join(faults))
    from experiments.reports.study_report import write_report
    from experiments.reports.study_sources import find_study
    from experiments.run.table_making import TableSources

    captions = None if given.captions.kind == "none" else given.captions.make
    sources = TableSources(given.source, given.dataset, given.masks.make, captions)
    show_step = step_printer()
    result = ablate.run_ablation(spec, options, show_step, sources)
    study = find_study(given.tracking_uri, options.workspace, result.study, options.catalog)
    report = write_report(study, (options.workspace / STUDIES / result.study).file("report.html"))
    show_step("report", report.page)
    return Reproduction(dataset=given.dataset, study=result, report=report)


def _find_faults(given: argparse.Namespace) -> list[str]:
    catalog = resolve_catalog(resolve_workspace(given.workspace), given.catalog)
    return find_faults(given.dataset, given.source, given.clip, given.masks, given.captions, catalog)


def _with_prices(given: argparse.Namespace) -> argparse.Namespace:
    """The options with the prices and the budget in that of the captions.

    Raises:
        ConfigError: They are not of a language model, or one price lacks the other.
    """
    prices = (given.usd_per_million_input, given.usd_per_million_output)
    if given.captions.kind != "llm" and {*prices, given.budget_usd} != {None}:
        raise ConfigError("--usd-per-million-... and --budget-usd belong to --captions llm:URL,MODEL")
    if (prices[0] is None) != (prices[1] is None):
        raise ConfigError("--usd-per-million-input and --usd-per-million-output: give both or none")
    for name in ("usd_per_million_input", "usd_per_million_output", "budget_usd"):
        value = getattr(given, name)
        if value is not None and not (0 <= value < math.inf and (value or name != "budget_usd")):
            option, least = name.replace("_", "-"), "above 0" if name == "budget_usd" else "from 0 on"
            raise ConfigError(f"--{option}={value}: expected a number of US dollars {least}")
    captions = replace(given.captions, prices=_prices(*prices), budget_usd=given.budget_usd)
    return argparse.Namespace(**vars(given) | {"captions": captions})


def _prices(prompt: float | None, completion: float | None) -> "Prices | None":
    from data_catalog.captions.llm.llm_settings import Prices

    return None if prompt is None or completion is None else Prices(prompt=prompt, completion=completion)


def print_result(result: Reproduction, wide: bool, workspace: str | None) -> None:
    """Print the tables, and where the page is, for a terminal."""
    ablate.print_ablation(result.study, wide, workspace)
    print_facts(text_console(), {"page": result.report.page, "markdown": result.report.markdown})


def show_plan(plan: "ReproductionPlan") -> None:
    """Print a plan for a terminal."""
    from experiments.reproducing.reproduction_printout import print_reproduction_plan

    print_reproduction_plan(plan)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 1 where a run was, or would be, stopped."""
    options = parser()
    given = options.parse_args(arguments)
    given.recipe = given.recipe or f"{given.dataset}-paper"
    if given.list_settings:
        return print_recipe_settings(given)
    refuse_without_plan(options, given)
    if given.plan:
        return run_command(
            lambda: make_plan(given), given.json, show_plan, lambda plan: 1 if plan.errors else 0
        )
    return run_command(
        lambda: reproduce(given),
        given.json,
        lambda result: print_result(result, given.wide, given.workspace),
        lambda result: int(not result.study.is_complete),
    )


if __name__ == "__main__":
    sys.exit(main())
