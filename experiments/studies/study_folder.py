"""The folder of a study: its journal, its result, its tables and figures, and to which study it belongs."""

import json
import re
import uuid
from pathlib import Path
from typing import TypeVar

from pydantic import Field, RootModel

from data_catalog.errors import DamagedFileError
from data_catalog.records import Record
from data_catalog.storage.folders import Content, Folder
from experiments.experiment_config import ConfigError
from experiments.studies.study_result import StudyResult
from experiments.tracking.journal_folder import JournalFolder

Result = TypeVar("Result", bound=StudyResult)

STUDIES = "studies"
"""Folder of all studies in a workspace."""
STUDY_FILE = "study.json"
RESULT_FILE = "result.json"
RUNS_FILE = "runs.json"
DESCRIPTION_FILE = "description.json"
ID_FILE = "folder.id"


class StudyMark(Record):
    """Whose folder it is (`study.json`)."""

    kind: str
    mark: str
    """The study's fingerprint, under a key from before the name."""


class StoredRun(Record):
    """A run of a study, as the study's folder has it."""

    name: str
    """Its name in MLflow."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Which part of the study it is."""
    status: str | None = None
    """How it ended: FINISHED, FAILED or KILLED; None where it did not, or is of an older version."""


class StoredRuns(RootModel[dict[str, StoredRun]]):
    """The runs of a study by the names of their folders (`runs.json`)."""


class StoredDescription(Record):
    """What MLflow was given of a study at its first start (`description.json`)."""

    recipe: str
    parameters: dict[str, str]
    tags: dict[str, str]


class StudyFolder(JournalFolder):
    """The files of a study: `<workspace>/studies/<name>`."""

    @classmethod
    def of(cls, workspace: Folder | Path, name: str) -> "StudyFolder":
        """The folder of a study, which need not exist."""
        return cls(Folder(workspace) / STUDIES / name)

    def is_of(self, kind: str, fingerprint: str) -> bool:
        """Whether the folder is that of a study, given as in `belong_to`."""
        own = StudyMark(kind=kind, mark=fingerprint)
        return self.has_file(STUDY_FILE) and self._read(STUDY_FILE, StudyMark) == own

    def belong_to(self, kind: str, fingerprint: str) -> None:
        """Note whose folder this is, or refuse it to another study.

        Args:
            kind: Kind of the study.
            fingerprint: Identifies the study among those of its kind; may change until a trial has ended.

        Raises:
            ConfigError: The folder is another study's.
        """
        own = StudyMark(kind=kind, mark=fingerprint)
        known = self._read(STUDY_FILE, StudyMark) if self.has_file(STUDY_FILE) else own
        if known.kind != kind or (known != own and self.journal.last("trial") is not None):
            raise ConfigError(
                f"study {self.name!r} in {self} is another {known.kind} (recipe, settings, data, "
                "space, seed or objectives differ); give this one another --name"
            )
        self.write(STUDY_FILE, json.dumps(dict(own)) + "\n")

    @property
    def uuid(self) -> str:
        """Distinguishes this folder from one of the same name in another workspace; moves with the folder."""
        if not self.has_file(ID_FILE):
            self.write(ID_FILE, uuid.uuid4().hex)
        stored = self.read(ID_FILE)
        if not re.fullmatch(rb"[0-9a-f]{32}", stored):
            raise DamagedFileError(
                self.file(ID_FILE), "expected 32 hexadecimal digits", "restore it from a copy of the folder"
            )
        return stored.decode()

    def write_result(self, result: StudyResult) -> None:
        """Store the result, whose files and MLflow are named without the path of the workspace."""
        self.write(RESULT_FILE, result.portable(self).to_json() + "\n")

    def read_result(self, form: type[Result]) -> Result | None:
        """The stored result, with the paths of its files; None where there is none yet.

        Raises:
            DamagedFileError: The file is damaged.
        """
        try:
            return self._read(RESULT_FILE, form).located(self)
        except FileNotFoundError:
            return None

    def write_runs(self, runs: dict[str, StoredRun]) -> None:
        """Store which runs belong to the study, by the names of their folders, and what they are in it."""
        stored = StoredRuns(runs).model_dump(mode="json", exclude_none=True)
        self.write(RUNS_FILE, json.dumps(stored, indent=2) + "\n")

    def read_runs(self) -> dict[str, StoredRun]:
        """The runs of the study by the names of their folders.

        Raises:
            FileNotFoundError: The study was begun by an older version, or killed before it could store them.
            DamagedFileError: The file is damaged.
        """
        return self._read(RUNS_FILE, StoredRuns).root

    def describe_once(self, description: StoredDescription) -> None:
        """Store the description, unless there is one: MLflow keeps the first one, too."""
        if not self.has_file(DESCRIPTION_FILE):
            self.write(DESCRIPTION_FILE, description.to_json() + "\n")

    def read_description(self) -> StoredDescription:
        """The description.

        Raises:
            FileNotFoundError: The study was begun by an older version.
            DamagedFileError: The file is damaged.
        """
        return self._read(DESCRIPTION_FILE, StoredDescription)

    def _read(self, name: str, form: type[Content]) -> Content:
        again = "delete it, and run the command that started the study again, which trains nothing anew"
        return self.read_record(name, form, again)
