"""The runs of a study as one table, for other programs: a row per run, as Parquet or CSV."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from data_catalog.records import Record
from data_catalog.storage import filesystems
from data_catalog.storage.folders import Folder
from experiments.experiment_config import ConfigError, ExperimentConfig, differences
from experiments.recipes import RECIPES
from experiments.run.run_folder import TRAIN, RunFolder
from experiments.run.run_result import METRICS, FeatureMetrics
from experiments.studies.study_folder import STUDIES, StoredRun, StudyFolder

ENDINGS = (".parquet", ".csv")


class RunTable(Record):
    """The table that `report.py --study NAME --table FILE` has written."""

    study: str
    table: str
    """Path or URI of the file."""
    runs: int
    """Its rows."""
    columns: tuple[str, ...]


def write_run_table(workspace: Folder, study: str, location: str) -> RunTable:
    """Write the table of a study.

    Args:
        workspace: The study's.
        study: Its name.
        location: File or URI, whose ending is one of `ENDINGS`.

    Raises:
        ConfigError: The ending is another one, or the study is not in the workspace or never ended.
        RunFolderError: The folder of a run is gone.
        CatalogError: The location cannot be written to.
    """
    path = filesystems.split_query(location)[0]
    if not path.endswith(ENDINGS):
        raise ConfigError(f"--table={location}: expected a file that ends with {' or '.join(ENDINGS)}")
    opened = filesystems.open_root(location)
    table = make_run_table(workspace, study)
    with filesystems.written_atomically(*opened) as stream:
        if path.endswith(".csv"):
            csv.write_csv(table, stream)
        else:
            parquet.write_table(table, stream)
    names = tuple(table.column_names)
    return RunTable(study=study, table=filesystems.absolute(location), runs=table.num_rows, columns=names)


def make_run_table(workspace: Folder, study: str) -> pa.Table:
    """The runs of a study, in the order of the study; what a run has not is null.

    Columns: `run`, the name of its folder; `row`, the rows of an ablation that it belongs to, or `trial` of a
    sweep; `seed`; `status`, FINISHED, FAILED or KILLED; `seconds`, all that it took; `epoch`, at which its
    metrics are; `U.mAP`, ...: retrieval metrics of each feature on the test identities, fractions, and
    `validation.U.mAP`, ... on those of validation; `model.sfm.perturbation`, ...: the settings in which a run
    differs from its recipe.
    """
    folder = StudyFolder.of(workspace, study)
    try:
        stored = folder.read_runs()
    except FileNotFoundError:
        known = ", ".join((workspace / STUDIES).list_folders()) or "no study"
        raise ConfigError(
            f"study {study!r} in workspace {workspace} has no list of its runs; run the command that started "
            f"it again, which repeats no finished run, or name another one: the workspace has {known}"
        ) from None
    runs = {name: RunFolder.open(workspace / TRAIN / name) for name in stored}
    settings = _changed_settings([run.config for run in runs.values()])
    rows = [
        {**_facts(stored[name], run), **{setting: run.config.flat().get(setting) for setting in settings}}
        for name, run in runs.items()
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    # Settings last, also where only some runs have results.
    order = [*(name for name in names if name not in settings), *settings]
    return pa.table({name: _column([row.get(name) for row in rows]) for name in order})


def _facts(stored: StoredRun, run: RunFolder) -> dict[str, Any]:
    trial, config = stored.tags.get("stmi.trial"), run.config
    row = {"row": stored.tags.get("stmi.rows")} if trial is None else {"trial": int(trial)}
    facts = {"run": run.name, **row, "seed": config.seed, "status": stored.status}
    result = run.result
    if result is None:
        return {**facts, "seconds": None, "epoch": None}
    return {
        **facts,
        "seconds": result.seconds.get("total"),
        "epoch": None if result.choices is None else result.choices.last.epoch,
        **_metrics("", result.metrics),
        **_metrics("validation.", result.validation or {}),
    }


def _metrics(prefix: str, features: Mapping[str, FeatureMetrics]) -> dict[str, float]:
    return {
        f"{prefix}{feature}.{name}": metrics.value(name)
        for feature, metrics in features.items()
        for name in METRICS
    }


def _changed_settings(configs: Sequence[ExperimentConfig]) -> list[str]:
    """Settings in which any config differs from its recipe, or from the first one where that is a user's."""
    changed: dict[str, None] = {}
    for config in configs:
        base = RECIPES[config.recipe]() if config.recipe in RECIPES else configs[0]
        changed |= dict.fromkeys(differences(base, config))
    return [name for name in changed if name != "seed"]


def _column(values: Sequence[Any]) -> pa.Array:
    """Values of one column; as text where they are of several kinds, or lists."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or (len(kinds) == 1 and kinds <= {bool, str}):
        return pa.array([float(value) if float in kinds and value is not None else value for value in values])
    return pa.array([None if value is None else str(value) for value in values])
