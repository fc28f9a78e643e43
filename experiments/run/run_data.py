"""The tables that a run reads: found in the catalog, or made there for the embedded benchmark."""

import logging
from collections.abc import Mapping
from functools import partial
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
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.progress import Progress, progress_bar
from data_catalog.storage.folders import Folder
from data_catalog.storage.local_copies import local_files
from data_catalog.synthetic import synthesize
from data_catalog.tables.digests import json_digest
from data_catalog.tables.table import Table, TableKind, find_table
from data_catalog.views.joined_view import check_alike
from experiments.experiment_config import ConfigError, ExperimentConfig
from experiments.run.run_options import RunOptions
from experiments.run.run_tables import OnStep, RunTables, join_names, junk_rule, split_names
from experiments.run.table_making import Tables, TableSources, again, make_tables
from stmi.clip.loading import LoadedClip

logger = logging.getLogger(__name__)


def prepare_tables(
    config: ExperimentConfig,
    clip: LoadedClip,
    options: RunOptions,
    on_step: OnStep = lambda step, result: None,
    sources: TableSources | None = None,
) -> RunTables:
    """Find the tables of a run and check them; those with sources, as the benchmark's, are made if missing.

    What data sets that are trained on together must have in common is checked before their data is.

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
    if sources is None and config.data.synthetic is None:
        tables = find_tables(config, clip, options.catalog)
    else:
        parts = {}
        for name, one in config.by_dataset().items():
            of = f" of {name}" if config.data.datasets else ""
            report_step = partial(_report_step, on_step, of)
            rendered = sources or _render_benchmark(one, options, report_step)
            parts[name] = make_tables(one, rendered, options.catalog, clip.embed_dim, report_step)
        tables = join_names(parts)
    check_parts(config, tables)
    reports = check_each(config, tables)
    for name, report in reports.items():
        if report.errors:
            found = "; ".join(f"{finding.check}: {finding.message}" for finding in report.errors)
            catalog = tables["samples"].catalog
            raise CatalogError(
                f"data set {name!r} is not fit for a run: {found}. `python -m data_catalog checks {name} "
                f"--catalog {quote(catalog)} --recipe {config.recipe} --json`, with the --set of this run, "
                "lists every sample that is meant"
            )
    return as_run_tables(config, tables, clip.digest, joined_report(reports).warnings)


def _report_step(on_step: OnStep, of: str, step: str, result: str) -> None:
    on_step(f"{step}{of}", result)


def check_parts(config: ExperimentConfig, tables: Tables) -> None:
    """Refuse data sets that cannot be trained on together.

    Args:
        config: The run.
        tables: All of its tables by name.

    Raises:
        CatalogError: Two data sets are not alike, or one lacks the masks that the run needs.
    """
    parts = split_names(tables, config.data.names)
    if len(parts) == 1:
        return
    for name, own in parts.items():
        for view in _views(own).values():
            if config.model.sfm.enabled and "masks" not in view.manifest.inputs:
                raise CatalogError(
                    f"data set {name!r}: model.sfm is on, but view {view.path} was made without masks; make "
                    "it with masks, or set model.sfm=off"
                )
    check_alike([view for own in parts.values() for view in _views(own).values()])


def as_run_tables(
    config: ExperimentConfig, tables: Tables, clip_digest: str, warnings: tuple[Finding, ...] = ()
) -> RunTables:
    """What a run reads of its tables.

    Args:
        config: The run.
        tables: As `find_tables` gives them; those of several data sets as `join_names` does.
        clip_digest: Digest of the run's CLIP.
        warnings: What the checks of the data warn of.
    """
    parts = split_names(tables, config.data.names)
    made_from: dict[str, dict[str, str]] = {}
    for name, own in parts.items():
        made_from[name] = dict(own["view/train"].manifest.inputs)
        if "text_features" in own:
            made_from[name] |= own["text_features"].manifest.inputs
        made_from[name] |= {kind: table.digest for kind, table in own.items()}
    return RunTables(
        join_names({name: _views(own) for name, own in parts.items()}),
        {name: own["captions"] for name, own in parts.items() if "captions" in own},
        join_names(made_from) | {"clip": clip_digest},
        warnings,
    )


def check_each(config: ExperimentConfig, tables: Tables, with_images: bool = True) -> dict[str, CheckReport]:
    """What the checks find in the tables of a run, by data set.

    Args:
        config: The run.
        tables: All of its tables by name.
        with_images: Compare the images, too, which finds no error; the catalog keeps hashes and report.

    Raises:
        CatalogError: A shard of a view is missing or damaged.
    """
    parts = split_names(tables, config.data.names)
    for own in parts.values():
        for view in _views(own).values():
            view.check_shards()
    return {name: _check_one(config, own, with_images) for name, own in parts.items()}


def joined_report(reports: Mapping[str, CheckReport]) -> CheckReport:
    """The findings of all data sets in one report, with the name of each where there are several."""
    if len(reports) == 1:
        return next(iter(reports.values()))

    def named(findings: Mapping[str, tuple[Finding, ...]]) -> tuple[Finding, ...]:
        return tuple(
            finding.model_copy(update={"message": f"data set {name!r}: {finding.message}"})
            for name, own in findings.items()
            for finding in own
        )

    return CheckReport(
        errors=named({name: report.errors for name, report in reports.items()}),
        warnings=named({name: report.warnings for name, report in reports.items()}),
    )


def _check_one(config: ExperimentConfig, tables: Tables, with_images: bool) -> CheckReport:
    """What the checks find in the tables of one data set of a run."""
    views = _views(tables)
    settings = CheckSettings(
        samples_per_identity=config.batch.samples_per_identity,
        junk=junk_rule(config.data, views.get("test", views["train"])),
        # The benchmark renders every image anew, so none occurs twice.
        images=with_images and config.data.synthetic is None,
    )
    artifacts = NewestTables(
        tables["samples"],
        tables.get("masks"),
        tables.get("captions"),
        tables.get("text_features"),
        views,
    )
    if not settings.images:
        return run_checks(artifacts, settings)
    with progress_bar("hash images", "shard") as progress:
        return load_or_run_checks(artifacts, settings, progress)


def _views(tables: Tables) -> Tables:
    return {str(split): tables[f"view/{split}"] for split in SPLITS if f"view/{split}" in tables}


def benchmark_folder(config: ExperimentConfig, workspace: Folder | Path) -> Path:
    """Where this machine has the embedded benchmark: a folder for each combination of settings."""
    return local_files(workspace) / "data" / benchmark_name(config)


def benchmark_name(config: ExperimentConfig) -> str:
    """Name of the folder of the embedded benchmark."""
    assert config.data.synthetic is not None
    return f"{config.data.dataset}-{json_digest(config.data.synthetic.deciding())[:8]}"


def _render_benchmark(config: ExperimentConfig, options: RunOptions, on_step: OnStep) -> TableSources:
    """Render the embedded benchmark, unless it is there; gives where its tables come from."""
    settings = config.data.synthetic
    assert settings is not None
    card = f"synthetic_{settings.kind}"
    folder = benchmark_folder(config, options.workspace)

    with progress_bar("synthesize", "sample") as report:
        rendered = synthesize(settings, folder, report)
    on_step("synthesize", f"{sum(rendered.samples.values())} samples {again(rendered.reused)}in {folder}")

    images = folder / "RGBNT201"

    def masks(samples: Table, report: Progress) -> Table:
        true_masks = folder / "true_masks"
        if settings.masks != "grabcut":
            return import_masks(samples, images, true_masks=true_masks, progress=report)
        return make_masks(samples, GrabCutSettings(), true_masks=true_masks, progress=report)

    def captions(samples: Table, report: Progress) -> Table:
        return make_captions(samples, folder / "readings", CaptionSettings(card=card), report)

    return TableSources(images, "rgbnt201", masks, captions)


def find_tables(config: ExperimentConfig, clip: LoadedClip, catalog: str) -> Tables:
    """The tables of a run on data sets of one's own, by name: `samples`, `masks`, ..., `view/train`.

    Raises:
        CatalogError: One is missing or damaged.
        ConfigError: A data set has no training split, or the first one has no test split.
    """
    return join_names(
        {name: _find_one(one, config, clip, catalog) for name, one in config.by_dataset().items()}
    )


def _find_one(one: ExperimentConfig, config: ExperimentConfig, clip: LoadedClip, catalog: str) -> Tables:
    """The tables of one data set of a run."""
    dataset = one.data.dataset
    samples = find_table(catalog, dataset, TableKind.SAMPLES)
    try:
        tables = _found_text(samples, clip)
        tables |= _found_views(one, samples, tables["text_features"])
    except CatalogError as error:
        if one.model.text.enabled:
            raise CatalogError(f"{error}. To train without captions: --set model.text=off") from None
        # A run without text takes views with text where there are any, so that it is found again by its data.
        tables = _found_views(one, samples, None)
    for name in ("train", "test") if dataset == config.data.dataset else ("train",):
        if f"view/{name}" not in tables:
            raise ConfigError(
                f"data set {dataset!r} has no {name} split; a run needs one: ingest its images again with "
                "that split"
            )
    if masks := tables["view/train"].manifest.inputs.get("masks"):
        tables["masks"] = find_table(catalog, dataset, TableKind.MASKS, digest=masks)
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
