"""Logs a study to MLflow: a parent run, and below it a child for each of the study's runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from experiments.run.run_description import describe_run
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.studies.study_folder import StudyFolder
from experiments.tracking.mlflow_logger import Description, MlflowLogger
from experiments.tracking.mlflow_store import child_file


@dataclass(frozen=True)
class StudyRun:
    """A run of a study.

    Attributes:
        folder: The run's.
        name: Its name in MLflow.
        tags: Which part of the study it is, for MLflow.
    """

    folder: RunFolder
    name: str
    tags: dict[str, str] = field(default_factory=dict)


class StudyLogger:
    """Logs a study: a parent run, and below it a child for each of its runs that has begun.

    A run that belongs to two studies is a child of both, and is logged twice: MLflow knows one parent only.

    Args:
        folder: The study's.
        options: Where MLflow is.
        description: Description of the parent.
    """

    def __init__(self, folder: StudyFolder, options: RunOptions, description: Description) -> None:
        assert options.tracking_uri is not None
        self.uri = options.tracking_uri
        self.workspace = options.workspace
        self.folder = folder
        self.parent = MlflowLogger(self.uri, folder, self.workspace, description)
        self._children: dict[tuple[str, str], MlflowLogger] = {}
        self._closed: set[str] = set()

    def sync(self, runs: Sequence[StudyRun]) -> None:
        """Send what the journals of study and runs have and MLflow has not; close the finished runs."""
        self.parent.sync()
        for run in runs:
            # A server that does not answer would make each of them wait.
            if run.folder.name in self._closed or not self.parent.answers:
                continue
            if (child := self._child(run)) is None:
                continue
            if not run.folder.is_finished:
                child.sync()
                continue
            child.finish("FINISHED", run.folder.files)
            if not child.behind:
                self._closed.add(run.folder.name)

    def finish(
        self, runs: Sequence[StudyRun], endings: Mapping[str, str], artifacts: Sequence[str], status: str
    ) -> None:
        """Close the children and the parent.

        Args:
            runs: All runs of the study.
            endings: Ending of each run, by its name: FINISHED, FAILED or KILLED.
            artifacts: Names of files in the folder of the study.
            status: Status of the study: FINISHED where it has all the runs that it was asked for.
        """
        self.parent.sync()
        for run in runs:
            child = self._child(run) if self.parent.answers else None
            if child is not None:
                child.finish(endings[run.folder.name], run.folder.files)
        self.parent.finish(status, artifacts)

    def close(self, endings: Mapping[str, str], status: str) -> None:
        """Close the children and the parent with what was sent before: the workspace is out of reach.

        Args:
            endings: As in `finish`, as far as they are known.
            status: Status of the study and of the other runs that are not known to be finished: FAILED or
                KILLED.
        """
        for (_, run), child in self._children.items():
            if run not in self._closed and self.parent.answers:
                child.close(endings.get(run, status))
        self.parent.close(status)

    @property
    def failures(self) -> dict[str, str]:
        """Name of the study or of a run to the reason why MLflow lacks something of it."""
        loggers = [
            (self.folder.name, self.parent),
            *((run, child) for (_, run), child in self._children.items()),
        ]
        return {name: one.failure for name, one in loggers if one.failure is not None}

    def _child(self, run: StudyRun) -> MlflowLogger | None:
        """The logger of a run; None before the run has begun, or while MLflow does not know the parent."""
        folder, parent = run.folder, self.parent.run_id
        if parent is None:
            return None
        # Where the store was replaced the parent is a new run, and gets children of its own.
        if (parent, folder.name) not in self._children:
            if folder.journal.last("started") is None:
                return None
            known = describe_run(folder)
            tags = known.tags | run.tags
            tags |= {"mlflow.parentRunId": parent, "stmi.study": self.folder.name}
            tags |= {"stmi.folder": folder.location}
            self._children[parent, folder.name] = MlflowLogger(
                self.uri,
                folder,
                self.workspace,
                replace(known, name=run.name, tags=tags),
                child_file(self.folder.name),
            )
        return self._children[parent, folder.name]
