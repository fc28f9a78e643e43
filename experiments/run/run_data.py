"""The tables that a run reads: found in the catalog, or made there for the embedded benchmark."""

import logging
from pathlib import Path
from shlex import quote

from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.checks.data_checks import CheckSettings, run_checks
from data_catalog.checks.findings import CheckReport, Finding
from data_catalog.checks.newest_tables import NewestTables
from data_catalog.checks.stored_reports import load_or_run_checks
from data_catalog.errors import CatalogError
from data_catalog.formats import SPLITS
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.progress import Progress, progress_bar
from data_catalog.storage.folders import Folder
from data_catalog.storage.local_copies import local_files
from data_catalog.synthetic import synthesize
from data_catalog.tables.digests import json_digest
from data_catalog.tables.table import Table, TableKind, find_table
from experiments.recipes import ConfigError, ExperimentConfig
from experiments.run.run_options import RunOptions
from experiments.run.run_tables import OnStep, RunTables
from experiments.run.table_making import Tables, TableSources, again, make_tables
from stmi.clip.clip_files import find_clip
from stmi.clip.loading import LoadedClip

logger = logging.getLogger(__name__)


def clip_source(config: ExperimentConfig) -> str:
    """The recipe's CLIP as workers find it: a folder (relative to here, or to the project), or a name."""
    return find_clip(config.model.clip.source)


def prepare_tables(
    config: ExperimentConfig,
    clip: LoadedClip,
    options: RunOptions,
    on_step: OnStep = lambda step, result: None,
    sources: TableSources | None = None,
) -> RunTables:
    """Find the tables of a run and check them; those with sources, as the benchmark's, are made if missing.

    Args:
        config: The run.
        clip: Its CLIP.
        options: Where the catalog is, and the benchmark's images.
        on_step: Called after each step.
        sources: Where the tables come from; None finds those of a data set of one's own.

    Raises:
        CatalogError: A table is missing or damaged, or the data has errors; names the samples.
        ConfigError: The tables do not fit the config.
    """
    if config.data.synthetic is not None:
        sources = _render_benchmark(config, options, on_step)
    if sources is None:
        tables = find_tables(config, clip, options.catalog)
    else:
        tables = make_tables(config, sources, options.catalog, clip.embed_dim, on_step)
    report = check_data(config, tables)
    if report.errors:
        found = "; ".join(f"{finding.check}: {finding.message}" for finding in report.errors)
        name, catalog = config.data.dataset, tables["samples"].catalog
        raise CatalogError(
            f"data set {name!r} is not fit for a run: {found}. `python -m data_catalog checks {name} "
            f"--catalog {quote(catalog)} --recipe {config.recipe} --json`, with the --set of this run, lists "
            "every sample that is meant"
        )
    return as_run_tables(tables, clip.digest, report.warnings)


def as_run_tables(tables: Tables, clip_digest: str, warnings: tuple[Finding, ...] = ()) -> RunTables:
    """What a run reads of its tables.

    Args:
        tables: As `find_tables` gives them.
        clip_digest: Of the run's CLIP.
        warnings: What the checks of the data warn of.
    """
    views = _views(tables)
    made_from = dict(views["train"].manifest.inputs)
    if "text_features" in tables:
        made_from |= tables["text_features"].manifest.inputs
    digests = made_from | {name: table.digest for name, table in tables.items()} | {"clip": clip_digest}
    return RunTables(views, tables.get("captions"), digests, warnings)


def check_data(config: ExperimentConfig, tables: Tables, with_images: bool = True) -> CheckReport:
    """What the checks find in the tables of a run.

    Args:
        config: The run.
        tables: As `find_tables` gives them.
        with_images: Compare the images, too, which finds no error; the catalog keeps hashes and report.

    Raises:
        CatalogError: A shard of a view is missing or damaged.
    """
    for view in _views(tables).values():
        view.check_shards()
    settings = CheckSettings(
        samples_per_identity=config.batch.samples_per_identity,
        junk=config.data.junk,
        # The benchmark renders every image anew, so none occurs twice.
        images=with_images and config.data.synthetic is None,
    )
    artifacts = NewestTables(
        tables["samples"],
        tables.get("masks"),
        tables.get("captions"),
        tables.get("text_features"),
        _views(tables),
    )
    if not settings.images:
        return run_checks(artifacts, settings)
    with progress_bar("hash images", "shard") as progress:
        return load_or_run_checks(artifacts, settings, progress)


def _views(tables: Tables) -> Tables:
    return {str(split): tables[f"view/{split}"] for split in SPLITS if f"view/{split}" in tables}


def benchmark_folder(config: ExperimentConfig, workspace: Folder | Path) -> Path:
    """Where this machine has the embedded benchmark's images: a folder for each combination of settings."""
    assert config.data.synthetic is not None
    digest = json_digest(config.data.synthetic.model_dump(mode="json"))
    return local_files(workspace) / "data" / f"{config.data.dataset}-{digest[:8]}"


def _render_benchmark(config: ExperimentConfig, options: RunOptions, on_step: OnStep) -> TableSources:
    """Render the embedded benchmark, unless it is there; gives where its tables come from."""
    settings = config.data.synthetic
    assert settings is not None
    card = f"synthetic_{settings.kind}"
    folder = benchmark_folder(config, options.workspace)

    with progress_bar("synthesize", "sample") as report:
        rendered = synthesize(settings, folder, report)
    on_step("synthesize", f"{sum(rendered.samples.values())} samples {again(rendered.reused)}in {folder}")

    def masks(samples: Table, report: Progress) -> Table:
        return make_masks(samples, GrabCutSettings(), true_masks=folder / "true_masks", progress=report)

    def captions(samples: Table, report: Progress) -> Table:
        return make_captions(samples, folder / "readings", CaptionSettings(card=card), report)

    return TableSources(folder / "RGBNT201", "rgbnt201", masks, captions)


def find_tables(config: ExperimentConfig, clip: LoadedClip, catalog: str) -> Tables:
    """The tables of a run on a data set of one's own, by name: `samples`, `masks`, ..., `view/train`.

    Raises:
        CatalogError: One is missing or damaged.
        ConfigError: The data set has no training or no test split.
    """
    samples = find_table(catalog, config.data.dataset, TableKind.SAMPLES)
    try:
        tables = _found_text(samples, clip)
        tables |= _found_views(config, samples, tables["text_features"])
    except CatalogError as error:
        if config.model.text.enabled:
            raise CatalogError(f"{error}. To train without captions: --set model.text=off") from None
        # A run without text takes views with text where there are any, so that it is found again by its data.
        tables = _found_views(config, samples, None)
    for name in ("train", "test"):
        if f"view/{name}" not in tables:
            raise ConfigError(
                f"data set {config.data.dataset!r} has no {name} split; a run needs one: ingest its images "
                "again with that split"
            )
    if masks := tables["view/train"].manifest.inputs.get("masks"):
        tables["masks"] = find_table(catalog, config.data.dataset, TableKind.MASKS, digest=masks)
    return {"samples": samples, **tables}


def _found_text(samples: Table, clip: LoadedClip) -> Tables:
    """The newest text features of this CLIP, and the captions that they were made from."""
    catalog, dataset = samples.catalog, samples.manifest.dataset
    text_features = find_table(
        catalog,
        dataset,
        TableKind.TEXT_FEATURES,
        inputs={"samples": samples.digest, "clip": clip.digest},
    )
    captions = find_table(
        catalog, dataset, TableKind.CAPTIONS, digest=text_features.manifest.inputs["captions"]
    )
    return {"captions": captions, "text_features": text_features}


def _found_views(config: ExperimentConfig, samples: Table, text_features: Table | None) -> Tables:
    """The newest view of each split: with these text features, or with any or none."""
    inputs = {"samples": samples.digest}
    if text_features is not None:
        inputs["text_features"] = text_features.digest
    size = config.model.image
    return {
        f"view/{split}": find_table(
            samples.catalog,
            samples.manifest.dataset,
            TableKind.VIEW,
            inputs=inputs,
            settings={"split": split, "height": size.height, "width": size.width},
        )
        for split in SPLITS
        if split in samples.statistics["splits"]
    }
