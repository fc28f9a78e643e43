"""Evaluate a trained model, or a checkpoint of the authors' released code, on the test identities.

    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --missing all --rerank --workers 4
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --dataset another_data_set
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --embeddings test.parquet --json
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --images yard --embeddings y.parquet
    python experiments/evaluate.py --released-checkpoint STMI_best.pth --recipe rgbnt201-released

Ray Data embeds the images on all nodes of the cluster at $RAY_ADDRESS, or on this machine. One pass over the
images gives the metrics of every retrieval feature; each set of missing modalities needs a pass of its own.
With --images nothing is measured: this process embeds a folder of images, as `search.py --help` describes it.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

import pyarrow as pa
from pydantic import Field, RootModel
from rich.table import Table

from data_catalog.command_parser import CommandParser, local_path
from data_catalog.errors import CatalogError
from data_catalog.ray_session import check_ray
from data_catalog.records import Record, add_json_options
from data_catalog.views.view_reader import open_view
from experiments import recipes
from experiments.command_line import (
    LIST_HELP,
    NAMES,
    add_workspace,
    check_file,
    metrics_table,
    print_notes,
    print_recipe_settings,
    run_command,
)
from experiments.evaluating.image_folder import FolderEmbeddings, read_folder
from experiments.evaluating.parquet_files import embedding_parts, view_labels, write_parquet
from experiments.experiment_config import ConfigError
from experiments.recipe_files import name_recipe
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import resolve_catalog, resolve_workspace
from experiments.run.run_result import FEATURE_NAMES, METRICS, FeatureMetrics
from experiments.settings_list import record_or_settings
from experiments.studies.published import PublishedResult, find_stmi_result
from experiments.terminal_tables import print_table, text_console, text_table
from stmi.modality import MODALITIES, Modality
from stmi.retrieval.metrics import JunkRule, RerankVariant, applied_rule

if TYPE_CHECKING:
    from experiments.evaluating.evaluation_target import EvaluationTarget

PROPER_SUBSETS = [
    subset for size in range(1, len(MODALITIES)) for subset in itertools.combinations(MODALITIES, size)
]
"""Each single modality, then each pair: the paper evaluates without each of these sets."""

RERANKINGS: dict[RerankVariant | None, str] = {
    "field": "as the field's code does, k1 = 20, k2 = 6, lambda = 0.3",
    "paper": "by the formulas of Zhong et al. 2017, k1 = 20, k2 = 6, lambda = 0.3",
}


class EvaluationSetting(Record):
    """Metrics in one setting."""

    missing: tuple[str, ...]
    """Modalities whose images are replaced by zeros."""
    reranked: bool
    """With k-reciprocal re-ranking (Zhong et al. 2017)."""
    rerank_variant: RerankVariant | None = None
    """Which re-ranking; None for none."""
    metrics: dict[str, FeatureMetrics]
    """By feature."""


class Evaluation(Record):
    """A model's metrics on a test view."""

    target: str = Field(alias="subject")
    """Name of the run, or of the checkpoint's file."""
    epoch: int | None
    """The run's epoch whose weights were used; None for a released checkpoint."""
    dataset: str
    table: str
    """Digest of the view."""
    samples: int
    junk: JunkRule
    settings: tuple[EvaluationSetting, ...]
    notes: tuple[str, ...] = ()
    """What is to be borne in mind of the measurement."""
    paper: PublishedResult | None
    """What the paper prints for the data set."""
    others: "tuple[Evaluation, ...]" = ()
    """Of a run on several data sets: the same on each other one, among its own gallery."""


class PrintedEvaluation(RootModel[Evaluation | FolderEmbeddings]):
    """What this script prints: metrics, or with `--images` what was embedded."""


def evaluate(
    target: "EvaluationTarget",
    missing: Sequence[tuple[Modality, ...]],
    rerank: RerankVariant | None = None,
    workers: int | None = None,
    embeddings: str | None = None,
    queries: str | None = None,
) -> Evaluation:
    """Metrics of every feature, for each set of missing modalities.

    Args:
        target: Model and view.
        missing: Sets of modalities whose images are replaced by zeros; the empty set for none.
        rerank: Also rank by this k-reciprocal re-ranking (Zhong et al. 2017).
        workers: Number of Ray actors; 0 for this process alone, None for as many as the cluster can run.
        embeddings: Parquet file or URI for the features of the first set.
        queries: Parquet file or URI for the average precision of each query, in every setting.
    """
    from experiments.evaluating.embedding_actors import embed_on_cluster
    from experiments.evaluating.evaluation_target import embed_here
    from experiments.run import evaluation

    view = open_view(target.table)
    notes = evaluation.check_view(view, target.junk)
    embedded = (
        embed_here(target, view, missing) if workers == 0 else embed_on_cluster(target, missing, workers)
    )
    settings, query_tables = [], []
    for number, (absent, features) in enumerate(zip(missing, embedded, strict=True)):
        if number == 0 and embeddings is not None:
            write_parquet(embeddings, embedding_parts(view_labels(view), features))
        for variant in (None, rerank) if rerank else (None,):
            scored = evaluation.score_each(view, features, target.junk, variant)
            setting = EvaluationSetting(
                missing=tuple(absent),
                reranked=variant is not None,
                rerank_variant=variant,
                metrics=evaluation.summarise(scored),
            )
            settings.append(setting)
            query_tables.append(add_setting(evaluation.query_table(view, scored), setting))
    if queries is not None:
        write_parquet(queries, query_tables)
    dataset = target.table.manifest.dataset
    return Evaluation(
        target=target.name,
        epoch=target.epoch,
        dataset=dataset,
        table=target.table.digest,
        samples=len(view),
        junk=applied_rule(target.junk, view.camera_id),
        settings=tuple(settings),
        notes=tuple(note.message for note in notes),
        paper=find_stmi_result(dataset),
    )


def add_setting(table: pa.Table, setting: EvaluationSetting) -> pa.Table:
    """A table with `missing` (modalities joined by +, or nothing), `reranked` and `rerank_variant`."""
    values = {
        "missing": "+".join(setting.missing),
        "reranked": setting.reranked,
        "rerank_variant": setting.rerank_variant or "",
    }
    for name, value in values.items():
        table = table.append_column(name, pa.repeat(value, len(table)))
    return table


def parse_missing(text: str) -> list[tuple[Modality, ...]]:
    """The sets of modalities that `--missing` names: `all`, or modalities joined by `+`.

    Raises:
        ConfigError: A name is not a modality, or all three are missing.
    """
    if text == "all":
        return list(PROPER_SUBSETS)
    names = [name.strip().upper() for name in text.split("+")]
    if not set(names) < set(map(str, MODALITIES)) or len(set(names)) < len(names):
        raise ConfigError(
            f"--missing={text}: expected one or two of {', '.join(MODALITIES)} joined by +, or all"
        )
    return [tuple(modality for modality in MODALITIES if modality in names)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--run", metavar="DIR", help="a finished run's folder or URI")
    target.add_argument(
        "--released-checkpoint",
        type=local_path,
        metavar="FILE",
        help="a checkpoint of the authors' released code",
    )
    target.add_argument("--list-settings", action="store_true", help=LIST_HELP)
    parser.add_argument(
        "--recipe",
        type=name_recipe,
        help="recipe or YAML file that a released checkpoint belongs to, needed with it (default: none)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help=f"change a setting of that recipe, for example model.sfm=off; may be repeated. {NAMES}",
    )
    parser.add_argument(
        "--epoch",
        choices=("reported", "last"),
        help="epoch of a run: the one that it reports, or its last one (default: reported)",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="evaluate a run on this data set of the catalog (default: its own; of several, on each)",
    )
    add_workspace(parser)
    parser.add_argument(
        "--catalog",
        help="folder or URI of the catalog with --dataset, or with the run's own tables if they are not "
        "where it found them (default: the run's own, or WORKSPACE/catalog)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of Ray actors, each with a GPU if the cluster has any (default: as many as the cluster "
        "can run); 0 for this process alone, which is fastest for a small data set",
    )
    parser.add_argument(
        "--missing",
        action="append",
        default=[],
        metavar="M[+M]",
        help="also without these modalities, such as RGB or NIR+TIR; all for each one and each pair. As in "
        "the paper their images become zeros; mask and caption, which need all three, do not change",
    )
    parser.add_argument("--rerank", action="store_true", help="also with k-reciprocal re-ranking")
    parser.add_argument(
        "--rerank-variant",
        choices=get_args(RerankVariant),
        help="the same, as the field's code computes it, or by the formulas of Zhong et al. 2017, in which a "
        "query that is also in the gallery counts once (default: field)",
    )
    parser.add_argument(
        "--wide", action="store_true", help="with --missing or --rerank, print ranks as well, in longer lines"
    )
    parser.add_argument(
        "--embeddings",
        metavar="FILE",
        help="write the features as Parquet, to a file or URI (default: not written)",
    )
    parser.add_argument(
        "--images",
        type=local_path,
        metavar="DIR",
        help="embed a folder of images with a run, instead of its test samples, and write --embeddings; "
        "nothing is measured (default: none)",
    )
    parser.add_argument(
        "--queries",
        metavar="FILE",
        help="write the average precision of each query in the same way (default: not written)",
    )
    add_json_options(parser, record_or_settings(PrintedEvaluation))
    given = parser.parse_args(arguments)
    if given.list_settings:
        if given.recipe is None:
            parser.error("--list-settings needs --recipe, for example --recipe rgbnt201-released")
        return print_recipe_settings(given)
    if given.images is not None:
        return run_command(lambda: embed_images(given), given.json, show_embeddings)

    def command() -> Evaluation:
        missing = [(), *(subset for text in given.missing for subset in parse_missing(text))]
        if given.workers is not None and given.workers < 0:
            raise ConfigError(f"--workers={given.workers}: expected a number of actors, or 0")
        outputs = {"--embeddings": given.embeddings, "--queries": given.queries}
        written = [check_file(option, location) for option, location in outputs.items() if location]
        if len(set(written)) < len(written):
            raise ConfigError(f"--embeddings and --queries both name {given.queries}; name two files")
        if given.workers != 0:
            _check_ray()
        variant: RerankVariant | None = given.rerank_variant or ("field" if given.rerank else None)
        first, *others = [
            evaluate(load(), missing, variant, given.workers, given.embeddings, given.queries)
            for load in find_targets(given)
        ]
        return first.model_copy(update={"others": tuple(others)})

    return run_command(command, given.json, lambda result: show(result, given.wide))


def _check_ray() -> None:
    """Refuse a cluster that is not there before the model is loaded.

    Raises:
        CatalogError: It is not there; says how to do without.
    """
    try:
        check_ray()
    except CatalogError as error:
        raise CatalogError(f"{error}; --workers 0 evaluates in this process, without Ray") from None


def find_targets(given: argparse.Namespace) -> "list[Callable[[], EvaluationTarget]]":
    """What loads each evaluation target of the command line; of a run on several data sets one for each.

    Raises:
        ConfigError: Options do not fit together.
    """
    catalog = resolve_catalog(resolve_workspace(given.workspace), given.catalog)
    if given.run is not None:
        if given.recipe or given.settings:
            raise ConfigError(
                "--recipe and --set go with --released-checkpoint; a run has its own settings: leave them out"
            )
        # A wrong folder does not wait for the import of PyTorch.
        run = RunFolder.open(given.run)
        datasets: list[str | None] = [given.dataset]
        if given.dataset is None and run.config.data.datasets:
            datasets = [None, *(name for name in run.config.data.datasets if f"test/{name}" in run.splits)]
            if wrong := [name for name in ("embeddings", "queries") if getattr(given, name)]:
                raise ConfigError(
                    f"--{wrong[0]} is one file, and run {run.name} has the data sets "
                    f"{', '.join(run.config.data.datasets)}; name one with --dataset"
                )
        from experiments.evaluating.evaluation_target import load_run

        own = catalog if given.catalog else None
        return [partial(load_run, given.run, name, own, given.epoch or "reported") for name in datasets]
    if given.epoch is not None:
        raise ConfigError("--epoch goes with --run; a released checkpoint is of one epoch; leave it out")
    if given.recipe is None:
        raise ConfigError("--released-checkpoint needs --recipe, for example --recipe rgbnt201-released")
    if given.dataset is not None:
        raise ConfigError(
            f"--dataset goes with --run; for a released checkpoint use --set data.dataset={given.dataset}"
        )
    config = recipes.resolve(given.recipe, given.settings)
    if not given.released_checkpoint.is_file():
        raise ConfigError(
            f"--released-checkpoint={given.released_checkpoint}: there is no such file; correct the path"
        )
    from experiments.evaluating.evaluation_target import load_released_checkpoint

    return [partial(load_released_checkpoint, given.released_checkpoint, config, catalog)]


def embed_images(given: argparse.Namespace) -> FolderEmbeddings:
    """Write the features of the folder of images that the command line names.

    Raises:
        ConfigError: Options do not fit together, or the folder has no sample that can be used.
    """
    others = (
        *("dataset", "missing", "rerank", "rerank_variant", "queries", "workers"),
        *("released_checkpoint", "recipe", "settings", "catalog"),
    )
    if wrong := [name for name in others if getattr(given, name)]:
        option = {"settings": "set"}.get(wrong[0], wrong[0].replace("_", "-"))
        raise ConfigError(f"--images goes with --run and --embeddings, not with --{option}")
    if given.embeddings is None:
        raise ConfigError(f"--images={given.images} needs --embeddings FILE, where the features go")
    check_file("--embeddings", given.embeddings)
    location, folder = RunFolder.open(given.run).location, read_folder(given.images)
    from experiments.evaluating.folder_embeddings import write_folder_embeddings

    return write_folder_embeddings(location, given.epoch or "reported", folder, given.embeddings)


def show_embeddings(result: FolderEmbeddings) -> None:
    """Print what was embedded."""
    console = text_console()
    widths = ", ".join(f"{name} ({width})" for name, width in result.features.items())
    console.print(f"{result.samples} samples of {result.images}: {widths}", soft_wrap=True)
    print_notes(
        console, [*result.notes, *(f"left out {name}: {why}" for name, why in result.left_out.items())]
    )
    console.print(f"written to {result.embeddings}", soft_wrap=True)


def show(result: Evaluation, wide: bool = False) -> None:
    """Print the metrics of every feature; of several settings, a table of their mAP.

    Args:
        result: Result of the evaluation.
        wide: Of several settings, print the ranks, too, in lines that may be longer than the terminal's.
    """
    console = text_console()
    epoch = "" if result.epoch is None else f", epoch {result.epoch}"
    title = f"{result.target}{epoch} on {result.dataset}"
    if len(result.settings) == 1:
        rows = {FEATURE_NAMES[name]: metrics for name, metrics in result.settings[0].metrics.items()}
        print_table(console, metrics_table(f"{title}, %", rows))
    else:
        print_table(console, settings_table(title, result.settings, wide), wide)
        for variant in {setting.rerank_variant for setting in result.settings} - {None}:
            console.print(f"re-ranked {RERANKINGS[variant]}")
    print_notes(console, result.notes)
    if result.paper is not None:
        console.print(result.paper.describe())
    for other in result.others:
        show(other, wide)


def settings_table(title: str, settings: Sequence[EvaluationSetting], wide: bool) -> Table:
    """A row for each setting, a column for each feature: its mAP in percent, and where `wide` its ranks."""
    shown = METRICS if wide else METRICS[:1]
    names = ", ".join(name.replace("rank", "rank ") for name in shown)
    table = text_table(f"{title}: {names}, %", "missing", *settings[0].metrics)
    for setting in settings:
        label = " and ".join(setting.missing) or "nothing"
        cells = [
            " ".join(f"{100 * metrics.value(name):.1f}" for name in shown)
            for metrics in setting.metrics.values()
        ]
        table.add_row(f"{label}, re-ranked" if setting.reranked else label, *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
