"""The trials of a sweep as files of its study's folder, from which Optuna's SQLite file can be made again."""

import json
from typing import Any

from data_catalog.storage.folders import Folder

TRIALS = "trials"
"""Folder of the trials in that of a study."""


class StoredTrials:
    """A JSON file for each trial, with all that Optuna knows of it.

    Args:
        study: Folder of the study, whose claim the only writer holds.
    """

    def __init__(self, study: Folder) -> None:
        self.folder = study / TRIALS

    def write(self, number: int, trial: dict[str, Any]) -> None:
        """Store a trial as it is now."""
        self.folder.write(f"{number:06d}.json", json.dumps(trial) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All trials, by number."""
        return [json.loads(self.folder.read(name)) for name in self.folder.list_files()]
