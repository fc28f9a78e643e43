"""The folder of a study: its journal, its result, its tables and figures, and to which study it belongs."""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_catalog.storage.folders import Folder
from experiments.recipes import ConfigError
from experiments.studies.study_result import StudyResult
from experiments.tracking.journal_folder import JournalFolder

STUDIES = "studies"
"""Folder of all studies in a workspace."""
STUDY_FILE = "study.json"
RESULT_FILE = "result.json"
RUNS_FILE = "runs.json"
ID_FILE = "folder.id"


class StudyFolder(JournalFolder):
    """The files of a study: `<workspace>/studies/<name>`."""

    @classmethod
    def of(cls, workspace: Folder | Path, name: str) -> "StudyFolder":
        """The folder of a study, made where it is new."""
        folder = cls(Folder(workspace) / STUDIES / name)
        if folder.is_local:
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
        own = {"kind": kind, "mark": fingerprint}
        known = json.loads(self.read(STUDY_FILE)) if self.has_file(STUDY_FILE) else own
        if known["kind"] != kind or (known != own and self.journal.last("trial") is not None):
            raise ConfigError(
                f"study {self.name!r} in {self} is another {known['kind']} (recipe, settings, data, "
                "space, seed or objectives differ); give this one another --name"
            )
        self.write(STUDY_FILE, json.dumps(own) + "\n")

    @property
    def uuid(self) -> str:
        """Distinguishes this folder from one of the same name in another workspace; moves with the folder."""
        if not self.has_file(ID_FILE):
            self.write(ID_FILE, uuid.uuid4().hex)
        return self.read(ID_FILE).decode()

    def write_result(self, result: StudyResult) -> None:
        """Store the result, whose files are named without the path of the folder."""
        self.write(RESULT_FILE, result.to_json() + "\n")

    def write_runs(self, runs: Mapping[str, Any]) -> None:
        """Store which runs belong to the study, by the names of their folders, and what they are in it."""
        self.write(RUNS_FILE, json.dumps(runs, indent=2) + "\n")
