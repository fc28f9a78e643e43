"""Sends the runs and studies of a workspace to a new or emptied MLflow store, from their own files.

What the store has already is not sent a second time, so a call that was interrupted continues.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from data_catalog.errors import CatalogError
from data_catalog.progress import ShowProgress, open_progress
from experiments.experiment_config import ConfigError
from experiments.reports.recorded_study import RESULT
from experiments.reports.report_files import LoggedAgain
from experiments.run import run_figures
from experiments.run.run_description import describe_run
from experiments.run.run_folder import CONFIG_FILE, TRAIN, RunFolder, RunFolderError
from experiments.run.run_options import RunOptions
from experiments.run.run_result import RunError
from experiments.studies.study_folder import RESULT_FILE, STUDIES, StudyFolder
from experiments.studies.study_logger import StudyLogger, StudyRun
from experiments.tracking.journal_folder import JOURNAL
from experiments.tracking.mlflow_logger import Description, MlflowLogger, check_store
from experiments.tracking.mlflow_store import MLFLOW_FILE, child_file
from stmi.uris import without_credentials

ERRORS = (CatalogError, ConfigError, OSError, RunError, RunFolderError, ValueError)
"""What damaged or missing files of a run raise; the other runs are sent all the same."""

OnSent = Callable[[int], None]
"""Called with the number of MLflow runs of a study that were sent so far."""
Send = Callable[[OnSent], dict[str, str]]
"""Sends a run, or a study with its children; returns what could not be sent, and why."""


def send_workspace(options: RunOptions) -> LoggedAgain:
    """Send all runs and studies of a workspace that have ended.

    Args:
        options: Workspace and tracking URI; the catalog for tables that are not where the runs found them.

    Raises:
        ConnectionError: MLflow does not answer.
    """
    studies = [_study_folder(options, name) for name in (options.workspace / STUDIES).list_folders()]
    return _send(options, _own_runs(options, studies), studies)


def send_run(options: RunOptions, folder: RunFolder) -> LoggedAgain:
    """Send one run, by itself and not as a part of a study.

    Raises:
        RunFolderError: It was never begun.
        ConnectionError: MLflow does not answer.
    """
    if folder.journal.last("started") is None:
        raise RunFolderError(f"run {folder} was never begun, so there is nothing to send")
    return _send(options, [folder], [])


def send_study(options: RunOptions, name: str) -> LoggedAgain:
    """Send one study with its runs.

    Raises:
        ConfigError: The workspace has no such study.
        ConnectionError: MLflow does not answer.
    """
    known = (options.workspace / STUDIES).list_folders()
    if name not in known:
        has = ", ".join(known) or "no study"
        raise ConfigError(f"study {name!r} is not in workspace {options.workspace}; it has {has}")
    return _send(options, [], [_study_folder(options, name)])


def _study_folder(options: RunOptions, name: str) -> StudyFolder:
    return StudyFolder(options.workspace / STUDIES / name)


def _own_runs(options: RunOptions, studies: Sequence[StudyFolder]) -> list[RunFolder]:
    """The runs that were logged by themselves before, or that belong to no study."""
    members: set[str] = set()
    for study in studies:
        # The study itself is reported where it is sent.
        with suppress(*ERRORS):
            members |= study.read_runs().keys()
    states = {child_file(study.name) for study in studies}
    found = []
    for name in (options.workspace / TRAIN).list_folders():
        folder = RunFolder(options.workspace / TRAIN / name, options.catalog)
        there = folder.list_files().keys()
        is_own = MLFLOW_FILE in there or (name not in members and not states & there)
        if is_own and JOURNAL in there and folder.journal.last("started") is not None:
            found.append(folder)
    return found


def _send(options: RunOptions, runs: Sequence[RunFolder], studies: Sequence[StudyFolder]) -> LoggedAgain:
    assert options.tracking_uri is not None
    check_store(options.tracking_uri, options.workspace)
    sizes = {study.name: _count_children(study) for study in studies}
    parts: list[tuple[str, int, Send]] = [
        *((run.name, 1, partial(_send_run, options, run)) for run in runs),
        *((study.name, 1 + sizes[study.name], partial(_send_study, options, study)) for study in studies),
    ]
    wrong: dict[str, str] = {}
    unreachable: str | None = None
    done = 0
    with open_progress("sending to MLflow", "run", sum(size for _, size, _ in parts)) as show:
        for name, size, send in parts:
            if unreachable is not None:
                wrong[name] = unreachable
                continue
            try:
                failures = send(partial(_show_from, show, done))
            except ERRORS as error:
                failures = {name: str(error)}
            done += size
            show(done)
            wrong |= failures
            try:
                # Where the server has gone, each of the others would wait for it.
                if failures:
                    check_store(options.tracking_uri, options.workspace)
            except ConnectionError as error:
                unreachable = str(error)
    lacking = {name.partition("/")[0] for name in wrong}
    return LoggedAgain(
        workspace=options.workspace.location,
        tracking_uri=without_credentials(options.tracking_uri),
        runs=tuple(run.name for run in runs if run.name not in lacking),
        studies={name: size for name, size in sizes.items() if name not in lacking},
        wrong=wrong,
    )


def _show_from(show: ShowProgress, before: int, sent: int) -> None:
    show(before + sent)


def _count_children(study: StudyFolder) -> int:
    with suppress(*ERRORS):
        return len(study.read_runs())
    return 0


def _send_run(options: RunOptions, folder: RunFolder, on_sent: OnSent) -> dict[str, str]:
    assert options.tracking_uri is not None
    wrong = {}
    with folder.claimed(RunError("another process trains it or logs it; wait for it, then call again")):
        pictures: list[str] = []
        if folder.is_finished:
            try:
                pictures = run_figures.find_pictures(folder) or run_figures.draw_all(
                    folder, folder.finished_result
                )
            except ERRORS as error:
                wrong[folder.name] = f"its pictures cannot be drawn: {error}"
        status = "FINISHED" if folder.is_finished else _end_of(folder)
        run_logger = MlflowLogger(options.tracking_uri, folder, options.workspace, describe_run(folder))
        run_logger.finish(status, [*pictures, *folder.files])
    return wrong if run_logger.failure is None else {folder.name: run_logger.failure}


def _end_of(folder: RunFolder) -> str:
    """MLflow's status of a run that has ended and is not finished."""
    ends = [event["event"] for event in folder.journal.read()[-1:]]
    return "FAILED" if ends in (["stopped"], ["failed"]) else "KILLED"


def _send_study(options: RunOptions, folder: StudyFolder, on_sent: OnSent) -> dict[str, str]:
    with folder.claimed(RunError("another process runs it; wait for it, then call again")):
        try:
            described, stored = folder.read_description(), folder.read_runs()
        except FileNotFoundError:
            return {
                folder.name: "its folder does not say which runs it has, since it is of an older version or "
                "was killed; run the command that started it again, which repeats no finished run"
            }
        folders = {name: RunFolder(options.workspace / TRAIN / name, options.catalog) for name in stored}
        runs = [StudyRun(folders[name], run.name, run.tags) for name, run in stored.items()]
        endings = {
            name: run.status or ("FINISHED" if folders[name].is_finished else _end_of(folders[name]))
            for name, run in stored.items()
        }
        result = RESULT.validate_json(folder.read(RESULT_FILE)) if folder.has_file(RESULT_FILE) else None
        study_logger = StudyLogger(
            folder,
            options,
            Description(described.recipe, folder.name, described.parameters, described.tags, {}),
        )
        for number, run in enumerate(runs):
            study_logger.sync([run])
            on_sent(number + 1)
        files: list[str] = []
        if result is not None:
            files = [RESULT_FILE, *result.files.values()]
            if study_logger.parent.run_id is not None:
                folder.write_result(result.model_copy(update={"mlflow": study_logger.parent.mlflow_run}))
        ended = "KILLED" if result is None else "FINISHED" if result.is_complete else "FAILED"
        study_logger.finish(runs, endings, files, ended)
    wrong = {
        f"{folder.name}/{name}": "its folder is gone from the workspace"
        for name, run in folders.items()
        if not run.has_file(CONFIG_FILE)
    }
    for name, reason in study_logger.failures.items():
        wrong[folder.name if name == folder.name else f"{folder.name}/{name}"] = reason
    return wrong
