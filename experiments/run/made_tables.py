"""The tables of a run that exist already, found without making any."""

from pathlib import Path
from typing import Any

from data_catalog.formats import SPLITS
from data_catalog.samples.ingestion import synthetic_inputs
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, list_tables, take_newest
from experiments.experiment_config import ExperimentConfig
from experiments.run import run_data
from experiments.run.run_tables import join_names
from stmi.clip.loading import LoadedClip

FoundTables = dict[str, Table | None]
"""The tables of a run by name; None where a table is missing."""


def find_made_tables(config: ExperimentConfig, clip: LoadedClip, catalog: str) -> run_data.Tables | None:
    """The tables of a run; None for the embedded benchmark where the run has to make some.

    Args:
        config: The run.
        clip: Its CLIP.
        catalog: Root of the catalog.

    Raises:
        CatalogError: One of a data set of one's own is missing or damaged, or the catalog cannot be read.
        ConfigError: A data set has no training split, or the first one no test split.
    """
    if config.data.synthetic is None:
        return run_data.find_tables(config, clip, catalog)
    found = look_up_tables(config, clip.digest, catalog)
    made = {name: table for name, table in found.items() if table is not None}
    return made if len(made) == len(found) else None


def look_up_tables(config: ExperimentConfig, clip_digest: str | None, catalog: str) -> FoundTables:
    """The tables that a run would find in the catalog: `samples`, `masks`, ..., and a `view/SPLIT` per split.

    Args:
        config: The run.
        clip_digest: Digest of its CLIP; None where the weights are not available, so its name must suffice.
        catalog: Root of the catalog.

    Raises:
        CatalogError: The catalog cannot be read.
    """
    return join_names(
        {name: _look_up_one(one, clip_digest, catalog) for name, one in config.by_dataset().items()}
    )


def _look_up_one(config: ExperimentConfig, clip_digest: str | None, catalog: str) -> FoundTables:
    """The same for a run on one data set."""
    tables = [
        table
        for table in list_tables(catalog, config.data.dataset)
        if table.manifest.schema_version == table.kind.schema_version
        and _fits_run(table, config, clip_digest)
    ]

    def newest(kind: TableKind, made_from: dict[str, Table | None], **settings: Any) -> Table | None:
        inputs = {name: table and table.digest for name, table in made_from.items()}
        fitting = [
            table
            for table in tables
            if table.kind is kind
            and inputs.items() <= table.manifest.inputs.items()
            and settings.items() <= table.manifest.settings.items()
        ]
        return take_newest(fitting) if fitting else None

    def find_input(table: Table | None, kind: TableKind) -> Table | None:
        """The input of a table; where there is no such table yet, the input that it would have."""
        if table is None:
            return newest(kind, {"samples": samples})
        return next((t for t in tables if t.digest == table.manifest.inputs.get(kind.value)), None)

    samples = newest(TableKind.SAMPLES, {})
    features = newest(TableKind.TEXT_FEATURES, {"samples": samples})

    def find_views(made_from: dict[str, Table | None]) -> FoundTables:
        size = config.model.image
        return {
            f"view/{split}": newest(
                TableKind.VIEW, made_from, split=split, height=size.height, width=size.width
            )
            for split in _splits(config, samples)
        }

    views = find_views({"samples": samples, "text_features": features})
    if not config.model.text.enabled and None in views.values():
        # As a run without text: any views serve where not all have text.
        views = find_views({"samples": samples})
    found = {
        "samples": samples,
        "masks": find_input(views["view/train"], TableKind.MASKS),
        "captions": find_input(features, TableKind.CAPTIONS),
        "text_features": features,
        **views,
    }
    is_needed = {"masks": config.model.sfm.enabled}
    is_needed |= dict.fromkeys(("captions", "text_features"), config.model.text.enabled)
    return {name: table for name, table in found.items() if table is not None or is_needed.get(name, True)}


def _fits_run(table: Table, config: ExperimentConfig, clip_digest: str | None) -> bool:
    """Whether a table comes from the run's own rendering of the benchmark, and from its own CLIP."""
    if table.kind is TableKind.SAMPLES and config.data.synthetic is not None:
        # By the name of its folder: the workspace may have been moved.
        name = Path(table.manifest.created["source"]).parent.name
        return name == run_data.benchmark_name(config) and table.manifest.inputs == synthetic_inputs(
            config.data.synthetic.artifacts()
        )
    if table.kind is TableKind.TEXT_FEATURES:
        if clip_digest is None:
            source = config.clip_source
            return bool(table.statistics["clip"] == (Path(source).name if Path(source).is_dir() else source))
        return table.manifest.inputs["clip"] == clip_digest
    return True


def _splits(config: ExperimentConfig, samples: Table | None) -> list[str]:
    if samples is None:
        return [split for split in SPLITS if split != "val" or config.data.synthetic is not None]
    return [split for split in SPLITS if split in samples.statistics["splits"]]
