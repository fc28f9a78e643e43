"""The folder of a study: its journal, its result, its tables and figures, and to which study it belongs."""

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_catalog.storage import filesystems
from data_catalog.storage.claims import ClaimedError, claim
from experiments.recipes import ConfigError
from experiments.run.run_result import RunError
from experiments.studies.study_result import StudyResult
from experiments.tracking.journal import Journal


@dataclass(frozen=True)
class StudyFolder:
    """The files of a study.

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
    def claimed(self) -> Iterator[None]:
        """Hold the right to run the study.

        Raises:
            RunError: Another process has it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(claim(self.path))
            except ClaimedError:
                raise RunError(
                    f"study {self.name} is being run by another process; wait for it, then run the same "
                    "command again to see its result"
                ) from None
            yield

    def belong_to(self, kind: str, fingerprint: str) -> None:
        """Note whose folder this is, or refuse it to another study.

        Args:
            kind: Kind of the study.
            fingerprint: Identifies the study among those of its kind; may change until a trial has ended.

        Raises:
            ConfigError: The folder is another study's.
        """
        # The key on disk is older than the name.
        path, own = self.path / "study.json", {"kind": kind, "mark": fingerprint}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else own
        if known["kind"] != kind or (known != own and self.journal.last("trial") is not None):
            raise ConfigError(
                f"study {self.name!r} in {self.path} is another {known['kind']} (recipe, settings, data, "
                "space, seed or objectives differ); give this one another --name"
            )
        self.write(path.name, json.dumps(own) + "\n")

    @property
    def uuid(self) -> str:
        """Tells this folder from one of the same name in another workspace; moves with the folder."""
        path = self.path / "folder.id"
        if not path.exists():
            self.write(path.name, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> Path:
        """Write a file completely or not at all; returns its path."""
        path = self.path / name
        filesystems.write_atomically(*filesystems.open_root(path), text.encode())
        return path

    def write_result(self, result: StudyResult) -> Path:
        """Store the result."""
        return self.write("result.json", result.to_json() + "\n")
