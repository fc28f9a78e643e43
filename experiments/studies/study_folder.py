"""The folder of a study: its journal, its result, its tables and figures, and to which study it belongs."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from experiments.recipes import ConfigError
from experiments.studies.study_result import StudyResult
from experiments.tracking.journal_folder import JournalFolder


@dataclass(frozen=True)
class StudyFolder(JournalFolder):
    """The files of a study: `<workspace>/studies/<name>`."""

    @classmethod
    def of(cls, workspace: Path, name: str) -> "StudyFolder":
        """The folder of a study, made where it is new."""
        folder = cls((workspace / "studies" / name).resolve())
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

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
        """Distinguishes this folder from one of the same name in another workspace; moves with the folder."""
        path = self.path / "folder.id"
        if not path.exists():
            self.write(path.name, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def write_result(self, result: StudyResult) -> Path:
        """Store the result."""
        return self.write("result.json", result.to_json() + "\n")
