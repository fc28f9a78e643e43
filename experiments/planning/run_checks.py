"""The rules of a run, asked before it: no error means that the run starts."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_catalog.checks.findings import CheckReport, Findings
from data_catalog.errors import CatalogError
from experiments.experiment_config import ConfigError, ExperimentConfig
from experiments.recipe_files import name_recipe
from experiments.recipes import resolve
from experiments.run.preflight import check_data_set
from stmi.errors import ClipFileError

if TYPE_CHECKING:
    from experiments.run.run_data import Tables
    from stmi.clip.loading import LoadedClip


def check_recipe(recipe: str, settings: Sequence[str], dataset: str, catalog: str) -> CheckReport:
    """What would stop a run of a recipe on a data set, and what it would warn of.

    Args:
        recipe: Name of a recipe, or path of a recipe file.
        settings: Changes, as `--set` takes them.
        dataset: Name of the data set, which must be the recipe's or be set.
        catalog: Root of the catalog, folder or URI.

    Raises:
        CatalogError: The recipe or a setting is impossible.
    """
    try:
        config = resolve(name_recipe(recipe), list(settings))
    except (ConfigError, ArgumentTypeError) as error:
        raise CatalogError(f"--recipe {recipe}: {error}") from None
    if dataset not in config.data.names:
        raise CatalogError(
            f"--recipe {recipe} trains on data set {config.data.dataset!r}, not on {dataset!r}; add --set "
            f"data.dataset={dataset}{'' if config.data.synthetic is None else ' --set data.synthetic=null'}, "
            "as the run needs it, too"
        )
    return check_run(config, catalog)


def check_run(config: ExperimentConfig, catalog: str, with_images: bool = True) -> CheckReport:
    """What would stop a run, and what it would warn of, by the functions that the run calls; makes no table.

    Args:
        config: The run.
        catalog: Root of the catalog.
        with_images: As in `run_data.check_each`.
    """
    # PyTorch takes seconds to import, which a wrong setting does not wait for.
    from experiments.run import run_data  # noqa: PLC0415
    from experiments.run.config_checks import check_batches, check_settings, check_tables  # noqa: PLC0415
    from stmi.clip.loading import load_clip  # noqa: PLC0415

    findings = Findings()
    try:
        check_data_set(config, catalog)
        clip = load_clip(config.clip_source)
        check_settings(config, clip)
        tables = _find_tables(config, clip, catalog, findings)
    except (CatalogError, ConfigError, ClipFileError) as error:
        findings.error("run_refused", str(error))
        return findings.report()
    if tables is None:
        return findings.report()
    report = CheckReport(errors=(), warnings=())
    try:
        run_data.check_parts(config, tables)
        report = run_data.joined_report(run_data.check_each(config, tables, with_images))
        found = run_data.as_run_tables(config, tables, clip.digest, report.warnings)
        check_tables(config, clip, found)
        findings.warnings += check_batches(config, found)
    except (CatalogError, ConfigError) as error:
        findings.error("run_refused", str(error))
    return CheckReport(
        errors=(*findings.errors, *report.errors), warnings=(*findings.warnings, *report.warnings)
    )


def _find_tables(
    config: ExperimentConfig, clip: "LoadedClip", catalog: str, findings: Findings
) -> "Tables | None":
    """The tables of the run; None for the embedded benchmark where the run has to make some."""
    from experiments.run.made_tables import find_made_tables, look_up_tables  # noqa: PLC0415

    tables = find_made_tables(config, clip, catalog)
    if tables is None:
        found = look_up_tables(config, clip.digest, catalog)
        missing = [name for name, table in found.items() if table is None]
        findings.warn(
            "made_by_run", f"the run itself makes the tables that are missing: {', '.join(missing)}"
        )
    return tables
