"""A run's folder: its config, its journal, its checkpoints and, once it is finished, its result."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_catalog.errors import CatalogError
from data_catalog.storage import filesystems
from data_catalog.tables.digests import json_digest
from data_catalog.tables.table import Table, TableKind, open_table
from experiments.recipes import ExperimentConfig, parse
from experiments.run.run_result import RunResult
from experiments.run.run_tables import RunTables
from experiments.tracking.journal_folder import JournalFolder
from experiments.tracking.mlflow_store import MlflowState

KEPT_CHECKPOINTS = 2
"""Checkpoints of a run that are kept: the newest, and one more."""


class RunFolderError(RuntimeError):
    """A run's folder that is missing, or belongs to another run."""


def fingerprint(config: ExperimentConfig, tables: RunTables) -> str:
    """Hex digest that identifies a run: all its settings, and the data and weights it starts from."""
    return json_digest({"config": config.model_dump(mode="json"), "tables": tables.digests})


@dataclass(frozen=True)
class RunFolder(JournalFolder):
    """The files of one run: `<workspace>/train/<recipe>-seed<seed>-<start of the fingerprint>`."""

    @classmethod
    def of(cls, workspace: Path, config: ExperimentConfig, tables: RunTables) -> "RunFolder":
        """The folder of the run with this config and these tables, made where it is new.

        Raises:
            RunFolderError: The folder holds another run.
        """
        own = fingerprint(config, tables)
        folder = cls._named(workspace, config, own)
        if folder._config_file.exists():
            known = folder._stored()["fingerprint"]
            if known != own:
                raise RunFolderError(
                    f"{folder.path} holds another run (fingerprint {known[:16]}, expected {own[:16]}); "
                    "move it away"
                )
            return folder
        views = {
            split: {
                "catalog": str(table.catalog),
                "dataset": table.manifest.dataset,
                "key": table.manifest.key,
            }
            for split, table in tables.views.items()
        }
        stored = {
            "fingerprint": own,
            "config": config.model_dump(mode="json"),
            "tables": tables.digests,
            "views": views,
        }
        folder.write(folder._config_file.name, json.dumps(stored, indent=2, allow_nan=False) + "\n")
        return folder

    @classmethod
    def begun(cls, workspace: Path, config: ExperimentConfig, tables: RunTables) -> "RunFolder":
        """The folder of this run if it was begun before.

        Raises:
            RunFolderError: It was not; names the runs of this recipe and seed that were.
        """
        folder = cls._named(workspace, config, fingerprint(config, tables))
        if folder.journal.path.exists():
            return folder
        others = [path.parent.name for path in folder.path.parent.glob(f"{config.recipe}-*/journal.jsonl")]
        raise RunFolderError(
            f"there is no run of these settings and tables to resume ({folder.name}); begun are "
            f"{', '.join(sorted(others)) or 'none of this recipe'}: leave --resume out to begin it"
        )

    @classmethod
    def _named(cls, workspace: Path, config: ExperimentConfig, fingerprint: str) -> "RunFolder":
        return cls((workspace / "train" / f"{config.recipe}-seed{config.seed}-{fingerprint[:8]}").resolve())

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run's folder.

        Raises:
            RunFolderError: There is no run in it.
        """
        folder = cls(path.resolve())
        if not folder._config_file.exists():
            raise RunFolderError(f"{path} is no run's folder: it has no config.json")
        return folder

    @property
    def pictures(self) -> Path:
        """Where the report's pictures go."""
        return self.path / "pictures"

    @property
    def files(self) -> list[Path]:
        """Config, journal and result, as far as they exist."""
        return [path for path in (self._config_file, self.journal.path, self._result_file) if path.exists()]

    @property
    def queries(self) -> Path:
        """Average precision of every test query at each epoch that was tested, once the run is finished."""
        return self.path / "queries.parquet"

    def checkpoint_location(self, storage: str | None) -> str:
        """Where the run's checkpoints go.

        Args:
            storage: Folder or URI that holds those of all runs; None for the run's own folder.
        """
        return filesystems.join(storage, self.name) if storage else str(self.path)

    @property
    def last_checkpoint(self) -> str | None:
        """Folder or URI of the newest checkpoint that the journal knows, or None."""
        stored = [event["checkpoint"] for event in self.journal.read() if event.get("checkpoint")]
        existing = [location for location in stored if "://" in location or Path(location).is_dir()]
        return existing[-1] if existing else None

    @property
    def trained(self) -> bool:
        """Whether training and test are complete: the test was reported, and its checkpoint exists."""
        checkpoint = (self.journal.last("test") or {}).get("checkpoint")
        return self.is_finished or (checkpoint is not None and checkpoint == self.last_checkpoint)

    @cached_property
    def config(self) -> ExperimentConfig:
        """The run's settings."""
        return parse(self._stored()["config"])

    @property
    def digests(self) -> dict[str, str]:
        """Table name to digest, of all that the run reads."""
        return self._stored()["tables"]

    def view(self, split: str) -> Table:
        """The view of a split.

        Raises:
            data_catalog.errors.CatalogError: It is not in the catalog any more.
        """
        stored = self._stored()["views"][split]
        table = open_table(stored["catalog"], stored["dataset"], TableKind.VIEW, stored["key"])
        if table is None:
            raise CatalogError(
                f"the {split} view {stored['key']} of run {self.name} is gone from {stored['catalog']}"
            )
        return table

    @property
    def is_finished(self) -> bool:
        """Whether the run has its result."""
        return self._result_file.exists()

    @property
    def result(self) -> RunResult | None:
        """The finished run's result, or None.

        Raises:
            RunFolderError: The file is damaged.
        """
        if not self.is_finished:
            return None
        try:
            stored = json.loads(self._result_file.read_text(encoding="utf-8"))
            # The first versions stored where MLflow has the run, too.
            stored.pop("mlflow", None)
            return RunResult.model_validate(stored)
        except ValueError as error:
            raise RunFolderError(f"{self._result_file} is damaged, move it away: {error}") from error

    @property
    def finished_result(self) -> RunResult:
        """The result of a run that must be finished.

        Raises:
            RunFolderError: The run is not finished, or the file is damaged.
        """
        result = self.result
        if result is None:
            raise RunFolderError(f"{self.path} is not finished; run the command that started it again")
        return result

    @property
    def mlflow(self) -> MlflowState | None:
        """Where MLflow has the run; None where nothing was logged yet."""
        if not (state := self.path / "mlflow.json").exists():
            return None
        return MlflowState.model_validate_json(state.read_bytes())

    def write_result(self, result: RunResult) -> None:
        """Store the result; from then on the run is finished."""
        self.write(self._result_file.name, result.to_json() + "\n")

    @property
    def _config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def _result_file(self) -> Path:
        return self.path / "result.json"

    def _stored(self) -> dict[str, Any]:
        return json.loads(self._config_file.read_text(encoding="utf-8"))
