"""Where a report finds its study: in an MLflow store, or in the workspace where no store can give it."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from data_catalog.storage.folders import Folder
from experiments.experiment_config import ConfigError
from experiments.reports.recorded_study import (
    RecordedRun,
    RecordedStudy,
    curve_metrics,
    read_result,
    read_study,
)
from experiments.run.run_description import describe_run
from experiments.run.run_folder import TRAIN, RunFolder
from experiments.run.run_result import RunError
from experiments.studies.study_folder import RESULT_FILE, RUNS_FILE, STUDIES, StoredRun, StudyFolder
from experiments.tracking.journal_folder import JOURNAL
from experiments.tracking.mlflow_logger import metrics_of
from experiments.tracking.mlflow_store import (
    MLFLOW_FILE,
    MlflowRun,
    MlflowState,
    local_store,
    open_local_store,
    read_state,
    resolve_tracking_uri,
)
from stmi.uris import without_credentials

logger = logging.getLogger(__name__)


def find_study(
    asked: str | None, workspace: Folder | Path, name: str, catalog: str | None = None
) -> RecordedStudy:
    """Read a finished study from the store that is asked for, or from the stores of this workspace.

    Where neither has the study as a whole, it is read from the workspace's own files: an embedded store may
    have been on a machine that is gone, or name where files were before the workspace was moved.

    Args:
        asked: Tracking URI. None for $MLFLOW_TRACKING_URI and then the workspace's own store: the variable
            may name a server that `cluster/local.py down` has ended.
        workspace: Workspace of runs and studies.
        name: Name of the study.
        catalog: Where tables are looked for that are not where the runs found them.

    Raises:
        ConfigError: No such store has the study; says where it was logged, and what to do.
        RunError: The study is not finished.
        ConnectionError: MLflow does not answer.
    """
    workspace = Folder(workspace)
    first, own = resolve_tracking_uri(asked, workspace), local_store(workspace)
    failures: list[ConfigError | ConnectionError | RunError] = []
    for uri in [first, *([own] if asked is None and first != own else [])]:
        try:
            if uri == own:
                open_local_store(workspace)
            study = read_study(uri, name)
        except (ConfigError, ConnectionError, RunError) as error:
            failures.append(error)
            continue
        if failures:
            logger.warning("%s; it is read from %s", failures[0], uri)
        return _in_workspace(study, workspace, catalog)
    if asked is None and (stored := _read_stored_study(workspace, name, catalog)) is not None:
        logger.warning("%s; it is read from workspace %s", failures[0], workspace)
        return stored
    if isinstance(failures[0], RunError):
        raise failures[0]
    raise type(failures[0])(f"{failures[0]}. {_where_logged(workspace, name, first)}")


def _where_logged(workspace: Folder, name: str, asked: str) -> str:
    """Where the study's own record says that MLflow has it, and what to do."""
    folder = workspace / STUDIES / name
    record = folder.file(MLFLOW_FILE)
    if not folder.has_file(MLFLOW_FILE):
        return f"Nor is there a record of it ({record}); name the folder of its runs with --workspace"
    logged = read_state(folder) or MlflowState(uri="")
    again = "run the command that started the study again: it trains nothing anew, and logs what is missing"
    if folder.has_file(RESULT_FILE) and folder.has_file(RUNS_FILE):
        again = (
            f"run `python experiments/report.py --mlflow-again --study {name} --workspace {workspace} "
            f"--tracking-uri {without_credentials(asked)}`"
        )
    if logged.run_id is None or logged.uri == without_credentials(asked):
        return f"To log it there, {again}"
    given = shlex.join(["--tracking-uri", logged.uri])
    return f"{record} says that it was logged to {logged.uri}: give {given}; or {again}"


def _in_workspace(study: RecordedStudy, workspace: Folder, catalog: str | None) -> RecordedStudy:
    """The study with the folders of its runs in this workspace, where they are there."""
    there = set((workspace / TRAIN).list_folders())
    folders = {run.run: workspace / TRAIN / run.run if run.run in there else run.folder for run in study.runs}
    runs = (replace(run, folder=RunFolder(folders[run.run], catalog)) for run in study.runs)
    return replace(study, runs=tuple(runs))


def _read_stored_study(workspace: Folder, name: str, catalog: str | None) -> RecordedStudy | None:
    """A finished study as its workspace has it; None where it does not, or only its result."""
    folder = StudyFolder(workspace / STUDIES / name)
    there = folder.list_files()
    if RESULT_FILE not in there or RUNS_FILE not in there:
        return None
    result = read_result(folder).located(folder)
    # Older versions stored absolute paths, of before the workspace was moved.
    files = [Folder(file).name for file in result.files.values()]
    runs = [
        _read_stored_run(RunFolder(workspace / TRAIN / run, catalog), name, result.mlflow, stored)
        for run, stored in folder.read_runs().items()
        if JOURNAL in (workspace / TRAIN / run).list_files()
    ]
    return RecordedStudy(
        name=name,
        mlflow=result.mlflow,
        result=result,
        pictures={file: folder.read(file) for file in files if file in there and file.endswith(".png")},
        runs=tuple(sorted(runs, key=lambda run: run.name)),
    )


def _read_stored_run(folder: RunFolder, study: str, parent: MlflowRun, stored: StoredRun) -> RecordedRun:
    described, config = describe_run(folder), folder.config
    values: dict[str, dict[int, float]] = {}
    for event in folder.journal.read():
        for metric, value, _, step in metrics_of(event):
            values.setdefault(metric, {})[step] = value
    curves = curve_metrics(config.report.feature)
    return RecordedRun(
        mlflow=folder.logged_in(study) or MlflowRun(uri=parent.uri),
        name=stored.name,
        run=folder.name,
        seed=config.seed,
        folder=folder,
        status=stored.status or ("FINISHED" if folder.is_finished else "FAILED"),
        parameters={setting: str(value) for setting, value in described.parameters.items()},
        digests=described.tables,
        tags=described.tags | stored.tags | {"stmi.study": study},
        curves={curve: values[metric] for curve, metric in curves.items() if metric in values},
    )
