"""Evaluate a trained model, or a checkpoint of the authors' released code, on the test identities.

    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --missing all --rerank --workers 4
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --dataset another_data_set
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --embeddings test.parquet --json
    python experiments/evaluate.py --released-checkpoint STMI_best.pth --recipe rgbnt201-released

Images are embedded by Ray Data on all nodes of the cluster at $RAY_ADDRESS, or on this machine. Every
retrieval feature is measured from one pass over the images, once for each set of missing modalities.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table as RichTable

from data_catalog.storage import filesystems
from data_catalog.views.training_view import View, open_view
from experiments import recipes
from experiments.command_line import run_command
from experiments.evaluating.embedding_actors import embed_on_cluster
from experiments.evaluating.evaluation_target import Subject, of_released_checkpoint, of_run
from experiments.evaluating.parquet_files import embedding_parts, write_parquet
from experiments.recipes import WORKSPACE, ConfigError
from experiments.run import evaluation, run_data
from experiments.run.run_figures import FEATURE_NAMES
from experiments.studies.published import in_words, stmi_on
from stmi.modality import MODALITIES, Modality

PROPER_SUBSETS = [
    subset for size in range(1, len(MODALITIES)) for subset in itertools.combinations(MODALITIES, size)
]
"""Each single modality, then each pair: what the paper measures without."""


def evaluate(
    subject: Subject,
    missing: Sequence[tuple[Modality, ...]],
    rerank: bool = False,
    workers: int | None = None,
    embeddings: str | None = None,
    queries: str | None = None,
) -> dict[str, Any]:
    """Metrics of every feature, for each set of missing modalities.

    Args:
        subject: What to evaluate.
        missing: Sets of modalities whose images are replaced by zeros; the empty set for none.
        rerank: Also rank by k-reciprocal re-ranking (Zhong et al. 2017).
        workers: Ray actors that embed; 0 for this process alone, None for as many as the cluster holds.
        embeddings: Parquet file or URI to write the features of the first set to.
        queries: Parquet file or URI to write each query's average precision to, for every setting.

    Returns:
        JSON values only: `subject`, `epoch` (of a run), `dataset`, `table`, `samples`, `junk` (the rule),
        `settings`, a list of `missing`, `reranked` and `metrics` by feature, and `paper`, what the paper
        prints of the data set.
    """
    view = open_view(subject.table)
    embedded = (
        embed_here(subject, view, missing) if workers == 0 else embed_on_cluster(subject, missing, workers)
    )
    settings, query_tables = [], []
    for number, (absent, features) in enumerate(zip(missing, embedded, strict=True)):
        if number == 0 and embeddings is not None:
            write_parquet(embeddings, embedding_parts(view, features))
        for reranked in (False, True) if rerank else (False,):
            scored = evaluation.score_each(view, features, subject.junk, reranked)
            setting = {"missing": list(map(str, absent)), "reranked": reranked}
            settings.append(setting | {"metrics": evaluation.summarise(scored)})
            query_tables.append(of_setting(evaluation.query_table(view, scored), setting))
    if queries is not None:
        write_parquet(queries, query_tables)
    return {
        "subject": subject.name,
        "epoch": subject.epoch,
        "dataset": subject.table.manifest.dataset,
        "table": subject.table.digest,
        "samples": len(view),
        "junk": subject.junk,
        "settings": settings,
        "paper": stmi_on(subject.table.manifest.dataset),
    }


def embed_here(
    subject: Subject, view: View, missing: Sequence[tuple[Modality, ...]]
) -> Iterator[dict[str, np.ndarray]]:
    """What `embed_on_cluster` gives, from this process."""
    model = subject.model.to("cuda" if torch.cuda.is_available() else "cpu")
    for absent in missing:
        batch = subject.config.train.evaluation_batch
        yield evaluation.embed(model, view, batch, subject.autocast, subject.captions, absent)


def of_setting(table: pa.Table, setting: dict[str, Any]) -> pa.Table:
    """A table with two columns more: `missing` (modalities joined by +, or nothing) and `reranked`."""
    values = {"missing": "+".join(setting["missing"]), "reranked": setting["reranked"]}
    for name, value in values.items():
        table = table.append_column(name, pa.repeat(value, len(table)))
    return table


def parse_missing(text: str) -> list[tuple[Modality, ...]]:
    """What `--missing` asks for: `all`, or modalities joined by `+`.

    Raises:
        ConfigError: A name is no modality, or all three are missing.
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, metavar="DIR", help="a finished run's folder")
    what.add_argument(
        "--released-checkpoint", type=Path, metavar="FILE", help="a checkpoint of the authors' released code"
    )
    parser.add_argument("--recipe", help="the recipe that a released checkpoint belongs to")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument(
        "--epoch",
        choices=("reported", "last"),
        help="of a run: the epoch that it reports, or its last one (default: reported)",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="evaluate a run on this data set of the catalog, not on its own"
    )
    parser.add_argument("--workspace", default=str(WORKSPACE), help="folder of runs (default: runs)")
    parser.add_argument(
        "--catalog", help="folder or URI of the catalog (default: the run's own, or WORKSPACE/catalog)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="Ray actors that embed, each with a GPU where there are any (default: as many as the cluster "
        "holds); 0 for this process alone, which is quickest for a small set",
    )
    parser.add_argument(
        "--missing",
        action="append",
        default=[],
        metavar="M[+M]",
        help="also without these modalities, such as RGB or NIR+TIR; all for each one and each pair. As in "
        "the paper their images become zeros, while mask and caption, made with all three, stay",
    )
    parser.add_argument("--rerank", action="store_true", help="also with k-reciprocal re-ranking")
    parser.add_argument(
        "--embeddings", metavar="FILE", help="write the features as Parquet, to a file or URI"
    )
    parser.add_argument("--queries", metavar="FILE", help="write each query's average precision likewise")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    given = parser.parse_args(arguments)

    def work() -> dict[str, Any]:
        missing = [(), *(subset for text in given.missing for subset in parse_missing(text))]
        if given.workers is not None and given.workers < 0:
            raise ConfigError(f"--workers={given.workers}: expected a number of actors, or 0")
        for place in filter(None, (given.embeddings, given.queries)):
            filesystems.open_root(place)  # a place of no known kind is refused before the work, not after it
        subject = chosen_subject(given)
        return evaluate(subject, missing, given.rerank, given.workers, given.embeddings, given.queries)

    return run_command(work, given.json, show)


def chosen_subject(given: argparse.Namespace) -> Subject:
    """What the command line asks to evaluate.

    Raises:
        ConfigError: Options that do not go together.
    """
    _, catalog = run_data.places(given.workspace, given.catalog)
    if given.run is not None:
        if given.recipe or given.settings:
            raise ConfigError("--recipe and --set go with --released-checkpoint; a run has its own settings")
        if given.catalog and given.dataset is None:
            raise ConfigError("--catalog goes with --dataset; a run finds its own data set where it was")
        return of_run(given.run, given.dataset, catalog if given.catalog else None, given.epoch or "reported")
    if given.epoch is not None:
        raise ConfigError("--epoch goes with --run; a released checkpoint is of one epoch")
    if given.recipe is None:
        raise ConfigError("--released-checkpoint needs --recipe, for example --recipe rgbnt201-released")
    if given.dataset is not None:
        raise ConfigError(
            f"--dataset goes with --run; for a released checkpoint use --set data.dataset={given.dataset}"
        )
    config = recipes.resolve(given.recipe, given.settings)
    return of_released_checkpoint(given.released_checkpoint, config, catalog)


def show(result: dict[str, Any]) -> None:
    """Print one table for each setting."""
    console = Console()
    for setting in result["settings"]:
        absent = f", without {' and '.join(setting['missing'])}" if setting["missing"] else ""
        reranked = ", re-ranked" if setting["reranked"] else ""
        epoch = "" if result["epoch"] is None else f", epoch {result['epoch']}"
        title = f"{result['subject']}{epoch} on {result['dataset']}{absent}{reranked}, %"
        table = RichTable(title=title, title_justify="left")
        table.add_column("feature")
        for column in ("mAP", "rank 1", "rank 5", "rank 10"):
            table.add_column(column, justify="right")
        for name, metrics in setting["metrics"].items():
            table.add_row(
                FEATURE_NAMES[name],
                *(f"{100 * metrics[key]:.1f}" for key in ("mAP", "rank1", "rank5", "rank10")),
            )
        console.print(table)
    if result["paper"] is not None:
        console.print(in_words(result["paper"]), highlight=False)


if __name__ == "__main__":
    sys.exit(main())
