"""A study: runs that belong together. Every kind has the same life; only its trials and its result differ."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Generic, TypeVar

from data_catalog.errors import CatalogError, DamagedFileError, NotWritableError, name_first
from data_catalog.progress import open_progress
from experiments.run.run_description import code_version, note_start, other_code_digests
from experiments.run.run_options import RunOptions
from experiments.run.run_result import RunError, status_after
from experiments.run.run_tables import RunTables
from experiments.run.stop_request import stopping_on_sigterm
from experiments.run.workers.ray_train import check_cluster
from experiments.studies.study_folder import RESULT_FILE, StoredDescription, StoredRun, StudyFolder
from experiments.studies.study_logger import StudyLogger, StudyRun
from experiments.studies.study_result import StudyResult
from experiments.tracking.event_files import event_files_written
from experiments.tracking.mlflow_logger import Description
from experiments.tracking.mlflow_store import MlflowRun
from experiments.tracking.polling import polling

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
REMOTE_POLL_SECONDS = 5.0
"""Each look into a journal in object storage is a request."""
LOG_SECONDS = 5.0

Result = TypeVar("Result", bound=StudyResult)


class Study(ABC, Generic[Result]):
    """A study, from its claim to its result.

    Args:
        recipe: Name; also that of the MLflow experiment.
        name: Name of the study.
        tables: What all runs read.
        options: Where runs are kept and logged, and what their workers get.

    Attributes:
        kind: Kind of the study, in one word.
        unit: What the progress counts.
        result_form: Model of its result.
    """

    kind: ClassVar[str]
    unit: ClassVar[str]
    result_form: type[Result]

    def __init__(self, recipe: str, name: str, tables: RunTables, options: RunOptions) -> None:
        self.recipe = recipe
        self.tables = tables
        self.options = options
        self.folder = StudyFolder.of(options.workspace, name)

    @property
    def fingerprint(self) -> str:
        """Identifies the study among those of its kind: the name, where it holds a digest."""
        return self.folder.name

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The study's settings, for MLflow."""

    def open(self) -> None:
        """Open what the study needs beside its folder; called under the claim."""

    @abstractmethod
    def runs(self) -> list[StudyRun]:
        """The runs known so far; called by other threads too, while `train` adds to them."""

    def is_trained(self) -> bool:
        """Whether no run is left to train."""
        return all(run.folder.is_finished for run in self.runs())

    @abstractmethod
    def train(self) -> None:
        """Train the runs that are left, on the Ray that this starts where nobody has yet."""

    @property
    @abstractmethod
    def total(self) -> int:
        """How many units there are to do."""

    @abstractmethod
    def progress(self) -> tuple[int, str]:
        """How many units are done, and a text to show beside it; called by another thread meanwhile."""

    def statuses(self) -> dict[str, str]:
        """MLflow's status of each run known to have ended, by its name: FINISHED, FAILED or KILLED."""
        return {run.folder.name: "FINISHED" for run in self.runs() if run.folder.is_finished}

    @abstractmethod
    def summarise(self, mlflow: MlflowRun) -> Result:
        """The result so far; writes tables and figures."""

    @abstractmethod
    def has_all(self, result: Result) -> bool:
        """Whether a stored result has all that is asked for, and nothing of it is left to train."""

    def finished_result(self) -> Result | None:
        """The stored result of a study that has all that is asked for; or None. Writes nothing."""
        if not self.folder.is_of(self.kind, self.fingerprint):
            return None
        try:
            result = self.folder.read_result(self.result_form)
        except DamagedFileError:
            # `run` makes it anew.
            return None
        return result if result is not None and result.is_complete and self.has_all(result) else None

    def run(self) -> Result:
        """Train what is missing of the study, and write its result.

        A finished study that lies where nothing can be written is shown as it was stored.

        Raises:
            ConfigError: The folder belongs to another study.
            RunError: Another process runs this study, or it cannot go on.
            InterruptedRunError: It was asked to stop.
            NotWritableError: Something is missing, and nothing can be written.
        """
        try:
            return self._run()
        except NotWritableError as error:
            result = self.finished_result()
            if result is None:
                raise
            logger.warning(
                "study %s is shown as it was stored, and MLflow is not brought up to date: %s",
                *(self.folder.name, error),
            )
            return result

    def _run(self) -> Result:
        with self.folder.claimed(self._busy()):
            self.folder.belong_to(self.kind, self.fingerprint)
            self.open()
            warned = _warn_of_other_code(self.runs())
            is_trained = self.is_trained()
            if not is_trained:
                check_cluster(self.options.needed_folders(trials=True))
            with self._logged() as study_logger, self._event_files_written():
                if not is_trained:
                    note_start(self.folder.journal)
                    with self._observed(study_logger), stopping_on_sigterm(self.folder):
                        self.train()
                result = self.summarise(study_logger.parent.mlflow_run)
                runs, endings = self.runs(), self._endings("FAILED")
                _warn_of_other_code(runs, warned)
                # Before it is logged to MLflow, which may take its time, or fail.
                self._store_runs(runs, endings)
                self.folder.write_result(result)
                study_logger.sync(runs)
                result = result.model_copy(update={"mlflow": study_logger.parent.mlflow_run})
                self.folder.write_result(result)
                files = [RESULT_FILE, *result.files.values()]
                study_logger.finish(runs, endings, files, "FINISHED" if result.is_complete else "FAILED")
        return result.located(self.folder)

    def _busy(self) -> RunError:
        return RunError(
            f"study {self.folder.name} is being run by another process; wait for it, then run the same "
            "command again to see its result"
        )

    @property
    def _poll_seconds(self) -> float:
        return POLL_SECONDS if self.folder.is_local else REMOTE_POLL_SECONDS

    @contextmanager
    def _logged(self) -> Iterator[StudyLogger]:
        """Log the study to MLflow meanwhile, and close it there if it ends early."""
        study_logger = self._logger()
        try:
            yield study_logger
        except BaseException as error:
            status, endings = status_after(error), dict[str, str]()
            try:
                runs, endings = self.runs(), self._endings(status)
                self._store_runs(runs, endings)
                study_logger.finish(runs, endings, [], status)
            except CatalogError:
                study_logger.close(endings, status)
            raise

    def _event_files_written(self) -> AbstractContextManager[None]:
        """Write TensorBoard's event files of the study and its runs meanwhile, where they are asked for."""
        if not self.options.writes_event_files:
            return nullcontext()
        return event_files_written(
            lambda: {self.folder: {}} | {run.folder: run.folder.config.flat() for run in self.runs()}
        )

    @contextmanager
    def _observed(self, study_logger: StudyLogger) -> Iterator[None]:
        """Show the progress meanwhile, and log it to MLflow."""
        with (
            # Runs of an ablation train at once, so that their epochs would be many lines.
            open_progress("training", self.unit, self.total, line_each=self.unit == "trial") as show,
            polling(lambda: show(*self.progress()), self._poll_seconds),
            # In a thread of its own: a server that hangs must not stop the bar. `finish` logs the end.
            polling(lambda: study_logger.sync(self.runs()), LOG_SECONDS, final_call=False),
        ):
            yield

    def _endings(self, otherwise: str) -> dict[str, str]:
        """MLflow's status of every run, by its name, now that the study ends."""
        return {run.folder.name: otherwise for run in self.runs()} | self.statuses()

    def _store_runs(self, runs: Sequence[StudyRun], endings: Mapping[str, str]) -> None:
        self.folder.write_runs(
            {
                run.folder.name: StoredRun(name=run.name, tags=run.tags, status=endings[run.folder.name])
                for run in runs
            }
        )

    def _logger(self) -> StudyLogger:
        name = self.folder.name
        tags = {"stmi.kind": self.kind, "stmi.study": name, **code_version()}
        parameters = {setting: str(value) for setting, value in self.parameters().items()}
        self.folder.describe_once(StoredDescription(recipe=self.recipe, parameters=parameters, tags=tags))
        return StudyLogger(self.folder, self.options, Description(self.recipe, name, parameters, tags, {}))


def describe_other_code(runs: Sequence[StudyRun]) -> list[str]:
    """Which runs were trained by other code than this: a sentence for each such code."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for digest in other_code_digests(run.folder):
            names.setdefault(digest, []).append(run.folder.name)
    now = code_version()["code.digest"]
    return [
        f"{len(trained)} of the {len(runs)} runs were trained, at least in part, by other code (digest "
        f"{digest}, now {now}): {name_first(trained)}. Move their folders away to train them anew."
        for digest, trained in names.items()
    ]


def _warn_of_other_code(runs: Sequence[StudyRun], warned: Sequence[str] = ()) -> list[str]:
    """Warn of runs of other code, unless a warning was given already; returns the warnings."""
    sentences = describe_other_code(runs)
    for sentence in sentences:
        if sentence not in warned:
            logger.warning("%s", sentence)
    return sentences
