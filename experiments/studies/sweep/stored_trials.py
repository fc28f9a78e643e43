"""The trials of a sweep as files of its study's folder, from which Optuna's SQLite file can be made again."""

from typing import Any

from data_catalog.records import Record
from data_catalog.storage.folders import Folder

TRIALS = "trials"
"""Folder of the trials in that of a study."""


class StoredTrial(Record):
    """All that Optuna knows of a trial."""

    number: int
    state: str
    """Optuna's name of it."""
    values: list[Any] | None
    params: dict[str, Any]
    distributions: dict[str, str]
    """By parameter, as Optuna writes them in JSON."""
    user_attrs: dict[str, Any]
    intermediate_values: dict[str, Any]
    """By epoch."""

    @property
    def has_ended(self) -> bool:
        """Whether it is one of the trials that were asked for; another one is run for one that crashed."""
        return self.state not in ("RUNNING", "WAITING") and "crashed" not in self.user_attrs


class StoredTrials:
    """A JSON file for each trial, with all that Optuna knows of it.

    Args:
        study: Folder of the study, whose claim the only writer holds.
    """

    def __init__(self, study: Folder) -> None:
        self.study = study
        self.folder = study / TRIALS

    def write(self, trial: StoredTrial) -> None:
        """Store a trial as it is now."""
        # Not through `self.folder`, which knows of no claim.
        self.study.write(f"{TRIALS}/{_file(trial.number)}", _content(trial))

    def read(self, first: int = 0) -> list[StoredTrial]:
        """All trials from this number on.

        Raises:
            DamagedFileError: A file is damaged.
        """
        remedy = "restore it from a copy: the trials after it were sampled from what it holds"
        names = [name for name in self.folder.list_files() if name >= _file(first)]
        return [self.folder.read_record(name, StoredTrial, remedy) for name in names]

    def has(self, trial: StoredTrial) -> bool:
        """Whether a trial is stored as it is now."""
        try:
            return self.folder.read(_file(trial.number)) == _content(trial)
        except FileNotFoundError:
            return False


def _file(number: int) -> str:
    return f"{number:06d}.json"


def _content(trial: StoredTrial) -> bytes:
    return trial.to_json().encode() + b"\n"
