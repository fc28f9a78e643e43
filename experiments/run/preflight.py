"""The checks before a run or a study starts, the cheapest ones first."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from data_catalog.ray_session import check_ray
from data_catalog.storage import filesystems
from data_catalog.storage.node_probe import reach
from data_catalog.tables.table import TableKind, find_table
from experiments.experiment_config import ExperimentConfig
from experiments.run.run_options import RunOptions
from experiments.run.run_tables import OnStep, RunTables

if TYPE_CHECKING:
    from experiments.run.table_making import TableSources

Check = Callable[[ExperimentConfig], None]
"""Raises ConfigError where a config is impossible."""


def preflight(
    first: ExperimentConfig,
    options: RunOptions,
    check_each: Callable[[Check], None],
    start_ray: Callable[[], None],
    is_finished: Callable[[RunTables], bool],
    on_step: OnStep = lambda step, result: None,
    sources: "TableSources | None" = None,
) -> RunTables:
    """Check all that can be checked, and find or make the tables of one or more runs.

    Args:
        first: One of the configs; all have the same data sets, image size and CLIP.
        options: Where catalog, runs and checkpoints are.
        check_each: Calls a check with every config.
        start_ray: Called once the settings are checked and before tables are made, unless all is finished.
        is_finished: Whether all that is asked for is finished, so that it needs no Ray and no more checks.
        on_step: Called after each step that makes a table.
        sources: Where the tables come from, of a data set whose tables are made if missing; None for others.

    Raises:
        ConfigError: A setting is impossible.
        CatalogError: A place, or a Ray at RAY_ADDRESS, cannot be reached; a table is missing or damaged, or
            the data has errors.
    """
    reach(options.needed_folders(trials=True))
    if sources is None:
        check_data_set(first, options.catalog)
    # PyTorch takes seconds to import, which a missing data set does not wait for.
    from experiments.run.config_checks import check_settings, check_tables  # noqa: PLC0415
    from experiments.run.made_tables import find_made_tables  # noqa: PLC0415
    from experiments.run.run_data import as_run_tables, prepare_tables  # noqa: PLC0415
    from stmi.clip.loading import load_clip  # noqa: PLC0415

    clip = load_clip(first.clip_source)
    check_each(lambda config: check_settings(config, clip))
    made = None
    if sources is None:
        made = find_made_tables(first, clip, options.catalog)
    if made is not None:
        found = as_run_tables(first, made, clip.digest)
        if is_finished(found):
            return found
    check_ray()
    start_ray()
    tables = prepare_tables(first, clip, options, on_step, sources)
    check_each(lambda config: check_tables(config, clip, tables))
    return tables


def check_data_set(config: ExperimentConfig, catalog: str) -> None:
    """Refuse a catalog that cannot be opened, or lacks a data set, before a CLIP is loaded for it.

    Raises:
        data_catalog.errors.CatalogError: Says which command makes the data set.
    """
    if config.data.synthetic is None:
        for name in config.data.names:
            find_table(catalog, name, TableKind.SAMPLES)
    else:
        # Its tables are made where they are missing.
        filesystems.open_root(catalog)
