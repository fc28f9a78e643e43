"""An evaluation target: a finished run, or a checkpoint of the authors' released code, with its test view."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import stmi
from data_catalog.storage.folders import Folder
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table
from data_catalog.views.view_reader import View, open_view
from experiments.experiment_config import ConfigError, ExperimentConfig, differences
from experiments.run import evaluation
from experiments.run.run_folder import RunFolder
from experiments.run.run_tables import junk_rule, number_cameras
from experiments.run.workers.training_loop import caption_tokens
from stmi.modality import Modality
from stmi.model import STMI
from stmi.processors import usable_processors
from stmi.released import released_checkpoint
from stmi.retrieval.metrics import JunkRule
from stmi.stored_run import EpochChoice

logger = logging.getLogger(__name__)

TEXTS_COMPARED = 16
SAME_TEXT = 0.99
"""Least cosine similarity of two encodings of a caption by the same tower; one may be in half precision."""


@dataclass(frozen=True)
class EvaluationTarget:
    """A model and the view on which it is evaluated; complete, so that it can be sent to an actor.

    Attributes:
        name: Name of the run, or of the checkpoint's file.
        model: The network, in evaluation mode.
        config: Its settings.
        table: The test view.
        junk: Which gallery samples of the query's identity are junk.
        autocast: Whether the network runs under bfloat16 autocast.
        captions: Token ids of the view's captions, where the model has a text tower of its own.
        epoch: The run's epoch whose weights these are; None for a checkpoint.
        trained: The run as `stmi.load` gives it, with the same model; None for a checkpoint.
    """

    name: str
    model: STMI
    config: ExperimentConfig
    table: Table
    junk: JunkRule
    autocast: bool
    captions: torch.Tensor | None = None
    epoch: int | None = None
    trained: stmi.TrainedRun | None = None


def load_run(
    path: str | Path | Folder,
    dataset: str | None = None,
    catalog: str | None = None,
    epoch: EpochChoice = "reported",
) -> EvaluationTarget:
    """A finished run, with the weights of the epoch that it reports, or of its last one.

    Args:
        path: Folder of the run, path or URI.
        dataset: Another data set, whose newest test view of the same image size is used, or one of its own;
            None for its own, the first one.
        catalog: Catalog of that data set, or of the run's tables if they are not where it found them; None
            for the catalog of the run.
        epoch: Whose weights are loaded.

    Raises:
        RunFolderError: There is no run in the folder.
        stmi.TrainedRunError: The run is not finished, or the weights of that epoch were not kept.
        ConfigError: The view does not fit the model.
        data_catalog.errors.CatalogError: There is no such view.
    """
    folder = RunFolder.open(path, catalog)
    run = stmi.load(folder.location, epoch=epoch, device="cpu")
    table, data, tokens = find_test_view(folder, dataset, catalog), folder.config.data, None
    junk = junk_rule(data, table)
    if dataset in data.names[1:]:
        views = {name: folder.view(name) for name in folder.splits}
        put_cameras_first(run.model, number_cameras(views, data.names)[dataset])
    elif dataset not in (None, data.dataset):
        forget_cameras(run.model, open_view(table).cameras)
    if folder.config.model.text.fine_tune:
        tokens = caption_tokens(run.tokenize, find_captions(table), {"test": open_view(table)})["test"]
    autocast = folder.config.train.precision == "bfloat16"
    return EvaluationTarget(
        folder.name, run.model, folder.config, table, junk, autocast, tokens, run.epoch, run
    )


def embed_here(
    target: EvaluationTarget, view: View, missing: Sequence[tuple[Modality, ...]]
) -> Iterator[dict[str, np.ndarray]]:
    """The same as `embedding_actors.embed_on_cluster`, in this process.

    Args:
        target: Model and view.
        view: Its view, open.
        missing: Sets of modalities whose images are replaced by zeros.

    Yields:
        For each set, float32 `(rows, width)` by feature name, in the order of the view.
    """
    use_processors()
    model = target.model.to("cuda" if torch.cuda.is_available() else "cpu")
    for absent in missing:
        batch = target.config.train.evaluation_batch
        yield evaluation.embed(model, view, batch, target.autocast, target.captions, absent).features


def use_processors() -> None:
    """Let PyTorch use no more threads than this process may: it knows of no quota."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_processors()))


def find_test_view(folder: RunFolder, dataset: str | None = None, catalog: str | None = None) -> Table:
    """The test view on which a run is evaluated; the arguments are those of `load_run`.

    Raises:
        ConfigError: The view does not fit the model.
        data_catalog.errors.CatalogError: There is no such view.
    """
    if dataset is None:
        return folder.view("test")
    if catalog is None and f"test/{dataset}" in folder.splits:
        return folder.view(f"test/{dataset}")
    return _find_view(folder, catalog or folder.view("test").catalog, dataset)


def find_captions(view: Table) -> Table:
    """The captions from which the text features of a view were made."""
    catalog, dataset = view.catalog, view.manifest.dataset
    digest = view.manifest.inputs["text_features"]
    text_features = find_table(catalog, dataset, TableKind.TEXT_FEATURES, digest=digest)
    return find_table(catalog, dataset, TableKind.CAPTIONS, digest=text_features.manifest.inputs["captions"])


def _find_view(folder: RunFolder, catalog: str, dataset: str) -> Table:
    """The newest test view of a data set that fits a run's model."""
    config, made_from = folder.config.model, {}
    if config.text.enabled:
        text_features = find_table(
            catalog, dataset, TableKind.TEXT_FEATURES, inputs={"clip": folder.digests["clip"]}
        )
        made_from = {"text_features": text_features.digest}
    settings = {"split": "test", "height": config.image.height, "width": config.image.width}
    table = find_table(catalog, dataset, TableKind.VIEW, inputs=made_from, settings=settings)
    if config.sfm.enabled and "masks" not in table.manifest.inputs:
        raise ConfigError(
            f"run {folder.name} was trained with model.sfm, but view {table.path} was made without masks; "
            "make it with masks"
        )
    return table


def forget_cameras(model: STMI, cameras: int) -> None:
    """Give every camera the mean of the camera embedding: it was trained for another data set's cameras."""
    tower = model.image_tower
    if tower.camera_embedding is not None:
        mean = tower.camera_embedding.detach().mean(dim=0)
        tower.camera_embedding = nn.Parameter(mean.repeat(cameras, 1))


def put_cameras_first(model: STMI, numbers: range) -> None:
    """Give one data set of a run on several the first camera numbers, as its own view counts them."""
    tower = model.image_tower
    if tower.camera_embedding is not None:
        others = sorted(set(range(len(tower.camera_embedding))) - set(numbers))
        tower.camera_embedding = nn.Parameter(tower.camera_embedding.detach()[[*numbers, *others]])


def add_cameras(model: STMI, cameras: int) -> None:
    """Give cameras beyond those that the model knows the mean of its camera embedding; says so."""
    embedding = model.image_tower.camera_embedding
    if embedding is not None and cameras > len(embedding):
        logger.warning(
            "the view has cameras up to camera_id %d, the checkpoint knows %d: the others get the mean of "
            "its camera embedding",
            *(cameras - 1, len(embedding)),
        )
        mean = embedding.detach().mean(dim=0)
        added = mean.repeat(cameras - len(embedding), 1)
        model.image_tower.camera_embedding = nn.Parameter(torch.cat([embedding.detach(), added]))


def load_released_checkpoint(path: Path, config: ExperimentConfig, catalog: str) -> EvaluationTarget:
    """A checkpoint of the authors' code, on the newest test view of the recipe's data set and image size.

    Raises:
        ConfigError: The file is no checkpoint of that code, or the config or the view does not fit it.
        data_catalog.errors.CatalogError: There is no such view.
    """
    size = config.model.image
    table = find_table(
        catalog,
        config.data.dataset,
        TableKind.VIEW,
        settings={"split": "test", "height": size.height, "width": size.width},
    )
    try:
        weights = released_checkpoint.read(path)
        model = released_checkpoint.load(weights, (size.height, size.width))
    except released_checkpoint.ReleasedCheckpointError as error:
        raise ConfigError(f"--released-checkpoint={path}: {error}") from None
    unused = released_checkpoint.unused_names(weights)
    print(f"{path.name}: omitted {len(unused)} weights that are never used: {', '.join(unused)}")
    view = open_view(table)
    if view.text_dim != model.image_tower.proj.shape[1]:
        raise ConfigError(
            f"view {table.path} has text features of width {view.text_dim}, the checkpoint's are "
            f"{model.image_tower.proj.shape[1]} wide; make them with the CLIP that it was trained from"
        )
    _check_recipe(config, model)
    _check_inputs(table, view, weights)
    add_cameras(model, view.cameras)
    # The authors train in mixed precision and evaluate in float32; bfloat16 would change the ranking.
    return EvaluationTarget(path.name, model, config, table, config.data.junk, autocast=False)


def _check_recipe(config: ExperimentConfig, model: STMI) -> None:
    """Refuse settings that differ from the checkpoint's model: they would have no effect."""
    # Weights come from the checkpoint, p is for training only, and the image size was used to load it.
    same_p = model.config.sfm.model_copy(update={"perturbation": config.model.sfm.perturbation})
    free = {"sfm": same_p, "clip": config.model.clip, "image": config.model.image}
    own = config.model_copy(update={"model": model.config.model_copy(update=free)})
    different = [f"{name}={given} (it has {is_})" for name, (given, is_) in differences(config, own).items()]
    if different:
        raise ConfigError(
            f"--recipe {config.recipe}: the checkpoint's model differs in {', '.join(different)}; name the "
            "released recipe that it belongs to, and set nothing of the model but model.image"
        )


def _check_inputs(table: Table, view: View, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse a view without masks, or without the text features that the checkpoint was trained with."""
    for name, step in (("masks", "masks"), ("text_features", "text-features")):
        if name not in table.manifest.inputs:
            raise ConfigError(
                f"view {table.path} was made without {name}, which the released model needs; run `python -m "
                f"data_catalog {step}`, then `view`"
            )
    rows = find_captions(table).read(["sample_index", "caption"])
    captions = dict(zip(rows["sample_index"].to_pylist(), rows["caption"].to_pylist(), strict=True))
    batch = view.batch(np.linspace(0, len(view) - 1, min(len(view), TEXTS_COMPARED)).astype(np.int64))
    given = torch.from_numpy(batch.text_feature)
    own = released_checkpoint.encode_captions(weights, [captions[i] for i in batch.sample_index.tolist()])
    similarity = torch.nn.functional.cosine_similarity(own, given).min().item()
    if similarity < SAME_TEXT:
        raise ConfigError(
            f"view {table.path}: its text features are not those of the checkpoint's own text tower (cosine "
            f"similarity down to {similarity:.3f}); make them with the CLIP that it was trained from, "
            "ViT-B-16-quickgelu/openai"
        )
