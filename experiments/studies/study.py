"""A study: runs that belong together, its folder, and in MLflow a parent with a child for each of them."""

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from data_catalog.storage import filesystems
from experiments.recipes import ConfigError, ExperimentConfig
from experiments.run.code_version import code_version, environment
from experiments.run.lifecycle import facts, other_digests
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import RunError
from experiments.studies.study_result import StudyResult
from experiments.tracking.journal import Journal
from experiments.tracking.mlflow_logger import Mirror, RunFacts
from experiments.tracking.polling import watching

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
SYNC_SECONDS = 5.0


@dataclass(frozen=True)
class StudyFolder:
    """The files of a study: its journal, its result, and what is drawn and written of it.

    Attributes:
        path: `<workspace>/studies/<name>`; the last part is the study's name.
    """

    path: Path

    @classmethod
    def of(cls, workspace: Path, name: str) -> "StudyFolder":
        """The folder of a study, made where it is new."""
        folder = cls((workspace / "studies" / name).resolve())
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def name(self) -> str:
        """The study's name."""
        return self.path.name

    @cached_property
    def journal(self) -> Journal:
        """What happened."""
        return Journal(self.path / "journal.jsonl")

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Keep a second process away from the study meanwhile.

        Raises:
            RunError: Another process has it.
        """
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout:
            raise RunError(
                f"study {self.name} is being run by another process; wait for it, then run the same command "
                "again to see what came of it"
            ) from None

    def belong_to(self, kind: str, mark: str) -> None:
        """Note whose folder this is, or refuse it to another study.

        Args:
            kind: What sort of study.
            mark: What tells it from others of its kind; may change until a trial has ended.

        Raises:
            ConfigError: The folder is another study's.
        """
        path, own = self.path / "study.json", {"kind": kind, "mark": mark}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else own
        if known["kind"] != kind or (known != own and self.journal.last("trial") is not None):
            raise ConfigError(
                f"study {self.name!r} in {self.path} is another {known['kind']} (recipe, settings, data, "
                "space, seed or objectives differ); give this one another --name"
            )
        self.write(path.name, json.dumps(own) + "\n")

    @property
    def identity(self) -> str:
        """What tells this folder from one of the same name in another workspace; it moves with the folder."""
        path = self.path / "folder.id"
        if not path.exists():
            self.write(path.name, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> Path:
        """Write a file whole or not at all; returns its path."""
        path = self.path / name
        filesystems.write_atomically(*filesystems.open_root(path), text.encode())
        return path

    def write_result(self, result: StudyResult) -> Path:
        """Store the result."""
        return self.write("result.json", result.to_json() + "\n")


@dataclass(frozen=True)
class Member:
    """A run of a study.

    Attributes:
        folder: The run's.
        config: Its settings.
        name: What it is called in MLflow.
        tags: What says there which part of the study it is.
    """

    folder: RunFolder
    config: ExperimentConfig
    name: str
    tags: dict[str, str] = field(default_factory=dict)


class StudyMirror:
    """Tells MLflow of a study: a parent run, and below it a child for each member that has begun.

    A run that stands in two studies is a child of both: MLflow knows one parent only, so it is told twice.

    Args:
        uri: Tracking URI.
        workspace: Where the embedded store keeps artifacts.
        folder: The study's.
        recipe: Names the MLflow experiment.
        parameters: What the study was asked for.
        tags: Of the parent, beside `stmi.study`.
    """

    def __init__(
        self,
        uri: str,
        workspace: Path,
        folder: StudyFolder,
        recipe: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        self.uri = uri
        self.workspace = workspace
        self.folder = folder
        described = dict(tags) | {"stmi.study": folder.name, **code_version()}
        self.parent = Mirror(
            uri, folder.path, workspace, RunFacts(recipe, folder.name, dict(parameters), described, {})
        )
        self._children: dict[tuple[str, str], Mirror] = {}
        self._closed: set[str] = set()

    def reopen(self) -> None:
        """Show a study that was finished before, and goes on, as running."""
        self.parent.reopen()

    def sync(self, members: Sequence[Member]) -> None:
        """Send what the journals of the study and of its members have and MLflow has not."""
        self.parent.sync()
        for member in members:
            # A server that does not answer would be waited for by each of them anew.
            if not self.parent.behind and (child := self._child(member)) is not None:
                child.sync()

    def close(self, members: Sequence[Member]) -> None:
        """Close the children whose runs are finished, while others go on."""
        for member in members:
            if member.folder.is_finished and member.folder.name not in self._closed:
                child = None if self.parent.behind else self._child(member)
                if child is not None:
                    child.finish("FINISHED", member.folder.files)
                    if not child.behind:
                        self._closed.add(member.folder.name)

    @contextmanager
    def ended_as_killed(self, members: Sequence[Member]) -> Iterator[None]:
        """Show in MLflow that a study ended, should it be interrupted or fail meanwhile."""
        try:
            yield
        except BaseException:
            status = {m.folder.name: "FINISHED" if m.folder.is_finished else "KILLED" for m in members}
            self.finish(list(members), status, [], complete=False)
            raise

    def finish(
        self, members: Sequence[Member], status: Mapping[str, str], artifacts: list[Path], complete: bool
    ) -> None:
        """Close the children and the parent.

        Args:
            members: All of them.
            status: Of each member that has ended, by the run's name: FINISHED, FAILED or KILLED.
            artifacts: Files of the study.
            complete: Whether the study has all that it was asked for.
        """
        self.parent.sync()
        for member in members:
            child = None if self.parent.behind else self._child(member)
            if child is not None and member.folder.name in status:
                child.finish(status[member.folder.name], member.folder.files)
        self.parent.finish("FINISHED" if complete else "FAILED", artifacts)

    def _child(self, member: Member) -> Mirror | None:
        """The mirror of a member; None before the run has begun, or while MLflow does not know the parent."""
        run, parent = member.folder, self.parent.run_id
        if parent is None:
            return None
        # Where the store was replaced the parent is a new run, and its children are told of it.
        if (parent, run.name) not in self._children:
            if run.journal.last("started") is None:
                return None
            known = facts(member.config, run)
            tags = known.tags | member.tags
            tags |= {"mlflow.parentRunId": parent, "stmi.study": self.folder.name}
            tags |= {"stmi.folder": str(run.path)}
            told = RunFacts(known.experiment, member.name, known.parameters, tags, known.tables)
            self._children[parent, run.name] = Mirror(
                self.uri, run.path, self.workspace, told, f"mlflow-{self.folder.name}.json"
            )
        return self._children[parent, run.name]


def begin_study(folder: StudyFolder) -> None:
    """Write into the journal which code starts, or continues, a study on which machine."""
    folder.journal.append("started", environment=environment(), **code_version())


def other_code(members: Sequence[Member]) -> list[str]:
    """Which members were trained by other code than this, in words: a sentence for each such code."""
    runs: dict[str, list[str]] = {}
    for member in members:
        for digest in other_digests(member.folder):
            runs.setdefault(digest, []).append(member.folder.name)
    now = code_version()["code.digest"]
    return [
        f"{len(names)} of the {len(members)} runs were trained, at least in part, by other code (digest "
        f"{digest}, now {now}): {', '.join(names)}. Move their folders away to train them anew."
        for digest, names in runs.items()
    ]


def warn_of_other_code(members: Sequence[Member]) -> None:
    """Say which runs of a study it takes as other code left them."""
    for sentence in other_code(members):
        logger.warning("%s", sentence)


class EpochProgress:
    """Shows how many epochs the runs of a study have trained, and how many of them are finished.

    Args:
        members: Runs of the study.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.done: dict[str, int] = {}

    def __call__(self, bar: tqdm) -> None:
        """Bring a progress bar up to date."""
        for member in self.members:
            if self.done.get(member.folder.name, 0) < member.config.train.epochs:
                self.done[member.folder.name] = len(member.folder.journal.epochs())
        finished = sum(member.folder.is_finished for member in self.members)
        bar.set_postfix_str(f"{finished}/{len(self.members)} runs", refresh=False)
        bar.update(sum(self.done.values()) - bar.n)


@contextmanager
def watched(
    members: Sequence[Member], mirror: StudyMirror, show: Callable[[tqdm], None], total: int, unit: str
) -> Iterator[None]:
    """Meanwhile show a study's progress and mirror it to MLflow.

    Args:
        members: Runs of the study; others may be added to the sequence meanwhile.
        mirror: Where to send it.
        show: Brings a progress bar up to date.
        total: Where the bar ends.
        unit: What it counts.
    """
    with (
        # Outermost: what is told at the end is not told by two threads at once.
        mirror.ended_as_killed(members),
        tqdm(total=total, desc="training", unit=unit) as bar,
        watching(partial(show, bar), LOOK_SECONDS),
        # In a thread of its own: a server that hangs must not stop the bar. The end is sent by `finish`.
        watching(partial(_tell, mirror, members), SYNC_SECONDS, to_the_end=False),
    ):
        yield


def _tell(mirror: StudyMirror, members: Sequence[Member]) -> None:
    known = list(members)
    mirror.sync(known)
    mirror.close(known)
