"""Evaluate a trained model, or a checkpoint of the authors' released code, on the test identities.

    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --missing all --rerank
    python experiments/evaluate.py --released-checkpoint STMI_best.pth --recipe rgbnt201-released
    python experiments/evaluate.py --run runs/train/demo-seed0-1a2b3c4d --embeddings test.parquet --json

Every retrieval feature is measured from one pass over the images, once for each set of missing modalities.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray.train import Checkpoint
from rich.console import Console
from rich.table import Table as RichTable

from data_catalog.schemas import TableKind
from data_catalog.tables import Table, find_table
from data_catalog.view import View, open_view
from experiments import checkpoints, datasets, evaluation, recipes
from experiments.command_line import run_command
from experiments.pictures import FEATURE_NAMES
from experiments.recipes import WORKSPACE, ConfigError, ExperimentConfig
from experiments.run_folder import RunFolder, RunFolderError
from experiments.training_loop import caption_tokens
from stmi import released_checkpoint
from stmi.clip import load_clip
from stmi.modality import MODALITIES, Modality
from stmi.model import STMI

PROPER_SUBSETS = [
    subset for size in range(1, len(MODALITIES)) for subset in itertools.combinations(MODALITIES, size)
]
"""Each single modality, then each pair: what the paper measures without."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and on what.

    Attributes:
        name: The run, or the checkpoint's file.
        model: The network, in evaluation mode.
        config: Its settings.
        table: The test view.
        captions: Token numbers of the view's captions, where the model has a text tower of its own.
    """

    name: str
    model: STMI
    config: ExperimentConfig
    table: Table
    captions: torch.Tensor | None = None


def of_run(path: Path) -> Subject:
    """A finished run, with the weights of its last epoch.

    Raises:
        RunFolderError: The run is not finished.
    """
    folder = RunFolder.open(path)
    result, untrained = folder.result, folder.journal.last("untrained")
    if result is None or untrained is None:
        raise RunFolderError(f"{path} is not finished; run the command that started it again")
    clip = load_clip(datasets.clip_source(folder.config))
    model = STMI(folder.config.model, clip, untrained["identities"], untrained["cameras"], folder.config.seed)
    with Checkpoint(result["checkpoint"]).as_directory() as checkpoint:
        checkpoints.load(Path(checkpoint), model)
    table, tokens = folder.view("test"), None
    if folder.config.model.text.fine_tune:
        tokens = caption_tokens(clip, captions_of(table), {"test": open_view(table)})["test"]
    return Subject(folder.name, model.eval(), folder.config, table, tokens)


def captions_of(view: Table) -> Table:
    """The captions that the text features of a view were made from."""
    catalog, dataset = view.catalog, view.manifest.dataset
    digest = view.manifest.inputs["text_features"]
    text_features = find_table(catalog, dataset, TableKind.TEXT_FEATURES, digest=digest)
    return find_table(catalog, dataset, TableKind.CAPTIONS, digest=text_features.manifest.inputs["captions"])


def of_released_checkpoint(path: Path, config: ExperimentConfig, catalog: str) -> Subject:
    """A checkpoint of the authors' code, on the newest test view of the recipe's data set and image size.

    Raises:
        ConfigError: The file is no checkpoint of that code.
        data_catalog.errors.CatalogError: There is no such view.
    """
    size = config.model.image
    table = find_table(
        catalog,
        config.data.dataset,
        TableKind.VIEW,
        settings={"split": "test", "height": size.height, "width": size.width},
    )
    if not path.is_file():
        raise ConfigError(f"--released-checkpoint={path}: there is no such file")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--released-checkpoint={path}: not a file of weights alone ({reason}); expected what "
            "torch.save(model.state_dict(), ...) writes"
        ) from None
    try:
        model = released_checkpoint.load(weights, (size.height, size.width))
    except released_checkpoint.ReleasedCheckpointError as error:
        raise ConfigError(f"--released-checkpoint={path}: {error}") from None
    unused = released_checkpoint.unused_names(weights)
    print(f"{path.name}: left out {len(unused)} weights that are never used: {', '.join(unused)}")
    view = open_view(table)
    if view.text_dim != model.image_tower.proj.shape[1]:
        raise ConfigError(
            f"view {table.path} has text features of width {view.text_dim}, the checkpoint's are "
            f"{model.image_tower.proj.shape[1]} wide; make them with the CLIP that it was trained from"
        )
    cameras = model.image_tower.camera_embedding
    if cameras is not None and view.camera_id.max() >= len(cameras):
        raise ConfigError(
            f"view {table.path} has camera {view.camera_id.max() + 1}, the checkpoint knows {len(cameras)}"
        )
    return Subject(path.name, model, config, table)


def evaluate(
    subject: Subject, missing: Sequence[tuple[Modality, ...]], rerank: bool, embeddings: Path | None = None
) -> dict[str, Any]:
    """Metrics of every feature, for each set of missing modalities.

    Args:
        subject: What to evaluate.
        missing: Sets of modalities whose images are replaced by zeros; the empty set for none.
        rerank: Also rank by k-reciprocal re-ranking (Zhong et al. 2017).
        embeddings: Parquet file to write the features of the first set to.

    Returns:
        JSON values only: `subject`, `dataset`, `table`, `samples`, and `settings`, a list of `missing`,
        `reranked` and `metrics` by feature.
    """
    view, train = open_view(subject.table), subject.config.train
    model = subject.model.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = []
    for number, absent in enumerate(missing):
        features = evaluation.embed(
            model, view, train.evaluation_batch, train.precision == "bfloat16", subject.captions, absent
        )
        if number == 0 and embeddings is not None:
            write_embeddings(embeddings, view, features)
        for reranked in (False, True) if rerank else (False,):
            metrics = evaluation.score_all(view, features, subject.config.data.junk, reranked)
            settings.append({"missing": list(map(str, absent)), "reranked": reranked, "metrics": metrics})
    return {
        "subject": subject.name,
        "dataset": subject.table.manifest.dataset,
        "table": subject.table.digest,
        "samples": len(view),
        "settings": settings,
    }


def write_embeddings(path: Path, view: View, features: dict[str, np.ndarray]) -> None:
    """Write a view's labels and features as Parquet, one row a sample."""
    names = ("sample_id", "identity", "camera_id", "scene_id", "is_query", "is_gallery")
    columns = {name: pa.array(getattr(view, name)) for name in names}
    for name, values in features.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.table(columns), partial)
    partial.replace(path)


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
    parser.add_argument("--workspace", default=str(WORKSPACE), help="folder of runs (default: runs)")
    parser.add_argument("--catalog", help="folder or URI of the catalog (default: WORKSPACE/catalog)")
    parser.add_argument(
        "--missing",
        action="append",
        default=[],
        metavar="M[+M]",
        help="also without these modalities, such as RGB or NIR+TIR; all for each one and each pair",
    )
    parser.add_argument("--rerank", action="store_true", help="also with k-reciprocal re-ranking")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help="write the features as Parquet")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    given = parser.parse_args(arguments)

    def work() -> dict[str, Any]:
        missing = [(), *(subset for text in given.missing for subset in parse_missing(text))]
        if given.run is not None:
            if given.recipe or given.settings:
                raise ConfigError(
                    "--recipe and --set go with --released-checkpoint; a run has its own settings"
                )
            subject = of_run(given.run)
        else:
            if given.recipe is None:
                raise ConfigError(
                    "--released-checkpoint needs --recipe, for example --recipe rgbnt201-released"
                )
            _, catalog = datasets.places(given.workspace, given.catalog)
            config = recipes.resolve(given.recipe, given.settings)
            subject = of_released_checkpoint(given.released_checkpoint, config, catalog)
        return evaluate(subject, missing, given.rerank, given.embeddings)

    return run_command(work, given.json, show)


def show(result: dict[str, Any]) -> None:
    """Print one table for each setting."""
    console = Console()
    for setting in result["settings"]:
        absent = f", without {' and '.join(setting['missing'])}" if setting["missing"] else ""
        reranked = ", re-ranked" if setting["reranked"] else ""
        title = f"{result['subject']} on {result['dataset']}{absent}{reranked}, %"
        table = RichTable(title=title, title_justify="left")
        table.add_column("feature")
        for column in ("mAP", "rank 1", "rank 5", "rank 10"):
            table.add_column(column, justify="right")
        for name, label in FEATURE_NAMES.items():
            metrics = setting["metrics"][name]
            table.add_row(
                label, *(f"{100 * metrics[key]:.1f}" for key in ("mAP", "rank1", "rank5", "rank10"))
            )
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
