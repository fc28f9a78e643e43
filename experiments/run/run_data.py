"""The tables that a run reads: found in the catalog, or made there for the embedded benchmark."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.captions.text_feature_table import make_text_features
from data_catalog.checks.artifacts import Artifacts
from data_catalog.checks.check_reports import checked
from data_catalog.checks.data_checks import CheckSettings, Finding, run_checks
from data_catalog.errors import CatalogError
from data_catalog.formats import SPLITS
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.progress import progress_bar
from data_catalog.samples.ingestion import ingest
from data_catalog.synthetic import synthesize
from data_catalog.tables.table import Table, TableKind, find_table, json_digest
from data_catalog.views.training_view import ViewSettings, make_view
from experiments.recipes import ROOT, ConfigError, ExperimentConfig
from experiments.run.batch_schedule import BatchSchedule
from stmi.clip.architecture import clip_folder
from stmi.clip.loading import LoadedClip
from stmi.feature_modulation import perturbation_probability
from stmi.kernels.capabilities import cpu_multiplies_bfloat16
from stmi.model import token_grid
from stmi.training import batch_plan
from stmi.training.batch_plan import BatchPlanError

logger = logging.getLogger(__name__)

Narrate = Callable[[str, str], None]
"""Called with a step's name and what came of it."""


@dataclass(frozen=True)
class RunTables:
    """What a run reads.

    Attributes:
        views: Split name to training view; `train` and `test` always, `val` where the data set has one.
        captions: What the text features of the views were made from.
        digests: Table name to digest, of these and of all that they were made from.
        warnings: What the checks of the data warn of.
    """

    views: dict[str, Table]
    captions: Table
    digests: dict[str, str]
    warnings: tuple[Finding, ...] = ()


def places(workspace: str, catalog: str | None) -> tuple[Path, str]:
    """Workspace and catalog as absolute places: workers run in other folders.

    Args:
        workspace: A folder.
        catalog: A folder or URI; None for the workspace's own.

    Raises:
        ConfigError: The workspace is a URI.
    """
    if "://" in workspace:
        raise ConfigError(
            f"--workspace={workspace}: runs are kept in a folder that all nodes share, not at a URI"
        )
    folder = Path(workspace).resolve()
    if catalog is None:
        return folder, str(folder / "catalog")
    return folder, catalog if "://" in catalog else str(Path(catalog).resolve())


def clip_source(config: ExperimentConfig) -> str:
    """The recipe's CLIP as workers find it: a folder from here, or below the project's own, or a name."""
    source = config.model.clip.source
    for path in (Path(source), ROOT / source):
        if (folder := clip_folder(path)) is not None:
            return str(folder.resolve())
    return source


def tables_of(
    config: ExperimentConfig,
    clip: LoadedClip,
    workspace: Path,
    catalog: str,
    narrate: Narrate = lambda step, result: None,
) -> RunTables:
    """Find the tables of a run, make those of the embedded benchmark that are missing, and check them.

    Args:
        config: The run.
        clip: Its CLIP.
        workspace: Folder for the benchmark's images.
        catalog: Root of the catalog.
        narrate: Told what came of each step.

    Raises:
        CatalogError: A table is missing or damaged, or the data has errors; names the samples.
        ConfigError: The tables do not fit the config.
    """
    if config.data.synthetic is not None:
        tables = _synthetic_tables(config, clip_source(config), workspace, catalog, narrate)
    else:
        tables = _found_tables(config, clip, catalog)
    views = {split: tables[f"view/{split}"] for split in SPLITS if f"view/{split}" in tables}
    made_from = views["train"].manifest.inputs | tables["text_features"].manifest.inputs
    digests = made_from | {name: table.digest for name, table in tables.items()} | {"clip": clip.digest}
    artifacts = Artifacts(
        tables["samples"], tables.get("masks"), tables["captions"], tables["text_features"], views
    )
    return RunTables(views, tables["captions"], digests, _check_data(config, artifacts))


def _check_data(config: ExperimentConfig, artifacts: Artifacts) -> tuple[Finding, ...]:
    """What the checks of the data warn of; what they find wrong stops the run.

    Raises:
        CatalogError: There are errors.
    """
    settings = CheckSettings(
        samples_per_identity=config.batch.samples_per_identity,
        junk=config.data.junk,
        # The benchmark draws every image anew, so none is there twice.
        images=config.data.synthetic is None,
    )
    if config.data.synthetic is not None:
        report = run_checks(artifacts, settings)
    else:
        with progress_bar("hash images", "shard") as progress:
            report = checked(artifacts, settings, progress)
    if report.errors:
        found = "; ".join(f"{finding.check}: {finding.message}" for finding in report.errors)
        name, catalog = config.data.dataset, artifacts.samples.catalog
        raise CatalogError(
            f"data set {name!r} is not fit for a run: {found}. `python -m data_catalog checks {name} "
            f"--catalog {catalog} --json` lists every sample that is meant"
        )
    return report.warnings


def check_data_set(config: ExperimentConfig, catalog: str) -> None:
    """Refuse a data set that is not in the catalog, before a CLIP is loaded for it.

    Raises:
        data_catalog.errors.CatalogError: Says which command makes it.
    """
    if config.data.synthetic is None:
        find_table(catalog, config.data.dataset, TableKind.SAMPLES)


def check_settings(config: ExperimentConfig, clip: LoadedClip) -> None:
    """Refuse a config that its CLIP cannot serve, before anything starts; warn of one that is very slow here.

    Raises:
        ConfigError: Names the setting, its value and what would fit.
    """
    try:
        token_grid(config.model, clip.model.visual.conv1.kernel_size[0])
        perturbation_probability(config.model.sfm, len(clip.model.visual.transformer.resblocks))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    attends = config.model.str.enabled or (
        config.model.chi.enabled and config.model.chi.mixer == "self_attention"
    )
    if attends and clip.embed_dim % config.model.str.heads:
        raise ConfigError(
            f"model.str.heads={config.model.str.heads} does not divide the token width {clip.embed_dim} "
            f"of model.clip.source={config.model.clip.source}"
        )
    # Of the machines of a cluster nothing is known here.
    on_processors = not torch.cuda.is_available() and os.environ.get("RAY_ADDRESS", "local") == "local"
    if config.train.precision == "bfloat16" and on_processors and not cpu_multiplies_bfloat16():
        logger.warning(
            "train.precision=bfloat16: this processor has no instructions for it and is some hundred times "
            "slower than in float32; set train.precision=float32"
        )
    if config.data.synthetic is not None:
        try:
            batch_plan.plan(np.arange(config.data.synthetic.train_identities), config.batch, config.seed, 0)
        except BatchPlanError as error:
            raise ConfigError(str(error)) from None


def check_tables(config: ExperimentConfig, clip: LoadedClip, tables: RunTables) -> None:
    """Refuse a config that its tables cannot serve, before any training starts.

    Raises:
        ConfigError: Names the setting, its value and what would fit.
    """
    size = (config.model.image.height, config.model.image.width)
    for table in tables.views.values():
        view = ViewSettings.model_validate(table.manifest.settings)
        if (view.height, view.width) != size or view.text_dim != clip.embed_dim:
            raise ConfigError(
                f"view {table.path} holds images of {(view.height, view.width)} and text features of width "
                f"{view.text_dim}; the config asks for model.image={size}, and "
                f"model.clip.source={config.model.clip.source} has width {clip.embed_dim}"
            )
        if config.model.sfm.enabled and "masks" not in table.manifest.inputs:
            raise ConfigError(
                f"model.sfm is on, but view {table.path} was made without masks; make it with masks, or set "
                "model.sfm=off"
            )
    try:
        BatchSchedule(tables.views["train"], config).rows(rank=0, epoch=0)
    except BatchPlanError as error:
        raise ConfigError(f"data.placement={config.data.placement}: {error}") from None


def drawing_folder(config: ExperimentConfig, workspace: Path) -> Path:
    """Where the embedded benchmark is drawn: other settings are other images, in a folder of their own."""
    assert config.data.synthetic is not None
    drawn_as = json_digest(config.data.synthetic.model_dump(mode="json"))
    return workspace / "data" / f"{config.data.dataset}-{drawn_as[:8]}"


def _synthetic_tables(
    config: ExperimentConfig, clip: str, workspace: Path, catalog: str, narrate: Narrate
) -> dict[str, Table]:
    settings = config.data.synthetic
    assert settings is not None
    card = f"synthetic_{settings.kind}"
    folder = drawing_folder(config, workspace)

    with progress_bar("synthesize", "sample") as report:
        drawn = synthesize(settings, folder, report)
    narrate("synthesize", f"{sum(drawn.samples.values())} samples {_again(drawn.reused)}in {folder}")
    with progress_bar("ingest", "shard") as report:
        samples = ingest(folder / "RGBNT201", catalog, config.data.dataset, progress=report)
    quarantined = len(samples.statistics["quarantined"])
    narrate("ingest", f"{len(samples)} samples, {quarantined} quarantined {_again(samples.reused)}")
    with progress_bar("masks", "shard") as report:
        masks = make_masks(samples, GrabCutSettings(), true_masks=folder / "true_masks", progress=report)
    narrate(
        "masks", f"mean IoU {masks.statistics['mean_iou']:.3f} against the true masks {_again(masks.reused)}"
    )
    with progress_bar("captions", "shard") as report:
        captions = make_captions(samples, folder / "readings", CaptionSettings(card=card), report)
    unknown = captions.statistics["unknown"]
    narrate(
        "captions",
        f"{unknown['RGB']:.0%} of attributes unknown from RGB alone, {unknown['JOINT']:.0%} from the three "
        f"side by side, {unknown['filled']:.0%} after filling {_again(captions.reused)}",
    )
    with progress_bar("text-features", "shard") as report:
        text_features = make_text_features(captions, clip, progress=report)
    narrate(
        "text-features",
        f"{text_features.statistics['distinct']} captions, width {text_features.statistics['text_dim']} "
        f"{_again(text_features.reused)}",
    )
    tables = {"samples": samples, "masks": masks, "captions": captions, "text_features": text_features}
    size = config.model.image
    for split in SPLITS:
        view = ViewSettings(split=split, height=size.height, width=size.width)
        with progress_bar(f"view {split}", "shard") as report:
            tables[f"view/{split}"] = make_view(samples, masks, text_features, view, report)
    views = [tables[f"view/{split}"] for split in SPLITS]
    narrate(
        "view",
        f"{' + '.join(str(len(view)) for view in views)} samples of {size.height}x{size.width} for "
        f"{' + '.join(SPLITS)} {_again(all(view.reused for view in views))}",
    )
    return tables


def _found_tables(config: ExperimentConfig, clip: LoadedClip, catalog: str) -> dict[str, Table]:
    dataset, size = config.data.dataset, config.model.image
    samples = find_table(catalog, dataset, TableKind.SAMPLES)
    made_from = {"samples": samples.digest}
    text_features = find_table(
        catalog, dataset, TableKind.TEXT_FEATURES, inputs=made_from | {"clip": clip.digest}
    )
    captions = find_table(
        catalog, dataset, TableKind.CAPTIONS, digest=text_features.manifest.inputs["captions"]
    )
    tables = {"samples": samples, "captions": captions, "text_features": text_features}
    for split in SPLITS:
        if split in samples.statistics["splits"]:
            tables[f"view/{split}"] = find_table(
                catalog,
                dataset,
                TableKind.VIEW,
                inputs=made_from | {"text_features": text_features.digest},
                settings={"split": split, "height": size.height, "width": size.width},
            )
    for name in ("train", "test"):
        if f"view/{name}" not in tables:
            raise ConfigError(f"data set {dataset!r} has no {name} split; a run needs one")
    if masks := tables["view/train"].manifest.inputs.get("masks"):
        tables["masks"] = find_table(catalog, dataset, TableKind.MASKS, digest=masks)
    return tables


def _again(reused: bool) -> str:
    return "(as before) " if reused else ""
