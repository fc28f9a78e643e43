"""A run's folder: its config, its journal, its checkpoints and, once it is finished, its result."""

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from data_catalog.errors import CatalogError, DamagedFileError
from data_catalog.records import Record
from data_catalog.storage import filesystems
from data_catalog.storage.folders import Folder
from data_catalog.tables.digests import json_digest
from data_catalog.tables.table import Table, TableKind, open_table
from experiments.experiment_config import ExperimentConfig, parse
from experiments.run.checkpoint_faults import find_fault
from experiments.run.run_options import CATALOG
from experiments.run.run_result import RunResult
from experiments.run.run_tables import RunTables
from experiments.tracking.journal_folder import JOURNAL, JournalFolder
from experiments.tracking.mlflow_store import MlflowState, child_file, read_state

logger = logging.getLogger(__name__)

TRAIN = "train"
"""Folder of all runs in a workspace."""
CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
LAST_FILE = "last.json"
"""In the folder of all runs."""
QUERIES_FILE = "queries.parquet"
INITIAL_FILE = "initial.safetensors"
"""The weights that the run began with, where it is not CLIP alone."""
PICTURES = "pictures"
"""Folder of the pictures in that of a run."""

KEPT_CHECKPOINTS = 2
"""Checkpoints of a run that are kept: the newest, and one more."""


class RunFolderError(RuntimeError):
    """A run's folder that is missing, or belongs to another run."""


def fingerprint(config: ExperimentConfig, tables: RunTables) -> str:
    """Hex digest that identifies a run: all its settings, and the data and weights it starts from."""
    return json_digest({"config": config.deciding(), "tables": tables.digests})


class StoredView(Record):
    """A view that a run reads, as its config has it."""

    catalog: str | None
    """None for that of the workspace, which may be moved."""
    dataset: str
    key: str


class StoredConfig(Record):
    """What identifies a run (`config.json`)."""

    fingerprint: str
    config: dict[str, Any]
    """All settings."""
    tables: dict[str, str]
    """Table name to digest."""
    views: dict[str, StoredView]
    """By split."""


class _LastRun(Record):
    """The run of a workspace that was finished last (`last.json`)."""

    run: str


class _StoredResult(RunResult):
    """A result as it is stored: without its folder; in the first versions with where MLflow has the run."""

    folder: str = ""
    mlflow: Any = None


class RunFolder(JournalFolder):
    """The files of one run: `<workspace>/train/<recipe>-seed<seed>-<start of the fingerprint>`.

    No stored state holds the path of the run or its workspace, so that a workspace may be moved, or mounted
    elsewhere on another machine.

    Args:
        location: Path or URI.
        catalog: Where tables are looked for that are not where the run found them; or None.
        storage: Folder or URI of the checkpoints of all runs, where they are not in the runs' own folders.
    """

    def __init__(
        self, location: str | Path | Folder, catalog: str | None = None, storage: str | None = None
    ) -> None:
        super().__init__(location)
        self.catalog = catalog
        self.storage = storage
        self._is_finished = False
        self._result: RunResult | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self.catalog, self.storage)

    @classmethod
    def of(
        cls, workspace: Folder | Path, config: ExperimentConfig, tables: RunTables, storage: str | None = None
    ) -> "RunFolder":
        """The folder of the run with this config and these tables, made where it is new.

        Args:
            workspace: Workspace of all runs.
            config: The run's settings.
            tables: What it reads.
            storage: As the class has it.

        Raises:
            RunFolderError: The folder holds another run.
        """
        own = fingerprint(config, tables)
        folder = cls._named(workspace, config, own, tables.catalog, storage)
        if (stored := folder._read_config()) is not None:
            known = stored.fingerprint
            if known != own:
                raise RunFolderError(
                    f"{folder} holds another run (fingerprint {known[:16]}, expected {own[:16]}); move it "
                    "away"
                )
            # As asked for now: it may be checkpointed more often than it was begun with.
            folder.config = config
            return folder
        views = {
            split: StoredView(
                catalog=folder._stored_catalog(table.catalog),
                dataset=table.manifest.dataset,
                key=table.manifest.key,
            )
            for split, table in tables.views.items()
        }
        stored = StoredConfig(
            fingerprint=own, config=config.model_dump(mode="json"), tables=tables.digests, views=views
        )
        folder.write(CONFIG_FILE, stored.to_json() + "\n")
        return folder

    @classmethod
    def planned(cls, workspace: Folder | Path, config: ExperimentConfig, tables: RunTables) -> "RunFolder":
        """The folder that `of` gives, which is not made, and need not be there."""
        return cls._named(workspace, config, fingerprint(config, tables), tables.catalog, None)

    @classmethod
    def has_finished(cls, workspace: Folder | Path, config: ExperimentConfig, tables: RunTables) -> bool:
        """Whether the run of `of` is finished; makes no folder."""
        return cls.planned(workspace, config, tables).is_finished

    @classmethod
    def begun(cls, workspace: Folder | Path, config: ExperimentConfig, tables: RunTables) -> "RunFolder":
        """The folder of this run if it was begun before.

        Raises:
            RunFolderError: It was not; names the runs of this recipe and seed that were.
        """
        folder = cls.planned(workspace, config, tables)
        if folder.has_file(JOURNAL):
            return folder
        others = [
            name
            for name in folder.parent.list_folders()
            if name.startswith(f"{config.recipe}-") and (folder.parent / name).has_file(JOURNAL)
        ]
        raise RunFolderError(
            f"there is no run of these settings and tables to resume ({folder.name}); begun are "
            f"{', '.join(others) or 'none of this recipe'}: leave --resume out to begin it"
        )

    @classmethod
    def _named(
        cls,
        workspace: Folder | Path,
        config: ExperimentConfig,
        fingerprint: str,
        catalog: str | None,
        storage: str | None,
    ) -> "RunFolder":
        name = f"{config.recipe}-seed{config.seed}-{fingerprint[:8]}"
        return cls(Folder(workspace) / TRAIN / name, catalog, storage)

    @classmethod
    def open(cls, location: str | Path | Folder, catalog: str | None = None) -> "RunFolder":
        """An existing run's folder.

        Args:
            location: Path or URI.
            catalog: As the class has it.

        Raises:
            RunFolderError: There is no run in it.
        """
        folder = cls(location, catalog)
        if folder._read_config() is None:
            raise RunFolderError(
                f"{location} is no run's folder: it has no {CONFIG_FILE}; name one in WORKSPACE/train"
            )
        return folder

    @classmethod
    def finished_last(cls, workspace: Folder | Path, catalog: str | None = None) -> "RunFolder":
        """The run of a workspace that was finished last.

        Each run that is finished notes that, so that no clock counts, nor the time of a file that was copied.
        Where the note is missing, or its run is, the times in the journals count.

        Args:
            workspace: Workspace of all runs.
            catalog: As the class has it.

        Raises:
            RunFolderError: There is none.
        """
        runs = Folder(workspace) / TRAIN
        # An older version noted nothing.
        if runs.has_file(LAST_FILE):
            noted = cls(runs / runs.read_record(LAST_FILE, _LastRun, "delete it").run, catalog)
            if noted.is_finished:
                return noted
        finished = [run for name in runs.list_folders() if (run := cls(runs / name, catalog)).is_finished]
        if not finished:
            raise RunFolderError(f"{runs} has no finished run; run experiments/train.py first")
        return max(finished, key=lambda run: (run.journal.last("finished") or {"time": 0.0})["time"])

    @property
    def files(self) -> list[str]:
        """Names of config, journal and result, as far as they exist."""
        there = self.list_files()
        return [name for name in (CONFIG_FILE, JOURNAL, RESULT_FILE) if name in there]

    def read_queries(self) -> pa.Table:
        """Average precision of every test query at each epoch that was tested, once the run is finished.

        Raises:
            DamagedFileError: The file is damaged.
        """
        data = self.read(QUERIES_FILE)
        try:
            return parquet.read_table(pa.BufferReader(data), page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise DamagedFileError(self.file(QUERIES_FILE), str(error), self._remedy) from None

    @property
    def checkpoints(self) -> Folder:
        """Where the run's checkpoints go."""
        return Folder(filesystems.join(self.storage, self.name)) if self.storage else self

    def stored_checkpoint(self, name: str) -> str:
        """How the journal names a checkpoint: by its name alone where it is in the run's own folder.

        Args:
            name: Name of its folder below `checkpoints`.
        """
        return self.checkpoints.file(name) if self.storage else name

    def find_checkpoint(self, stored: str) -> str:
        """Path or URI of a checkpoint that the journal or the result names.

        Older versions stored absolute paths. Where a workspace or storage was moved, the checkpoint is in the
        run's folder, or where checkpoints go now.
        """
        name = filesystems.split_query(stored)[0].rstrip("/").rpartition("/")[2]
        folders = [self, self.checkpoints, *([] if stored == name else [Folder(stored).parent])]
        found = next((folder for folder in folders if folder.has_folder(name)), folders[-1])
        return found.file(name)

    @property
    def last_checkpoint(self) -> str | None:
        """Folder or URI of the newest sound checkpoint that the journal knows, or None.

        A damaged one is named in a warning, and the one before it is taken.
        """
        stored = [event["checkpoint"] for event in self.journal.read() if event.get("checkpoint")]
        for location in dict.fromkeys(self.find_checkpoint(name) for name in reversed(stored)):
            checkpoint = Folder(location)
            if not checkpoint.parent.has_folder(checkpoint.name):
                continue
            if (fault := find_fault(checkpoint)) is None:
                return location
            logger.warning(
                "checkpoint %s is damaged (%s); run %s goes on from an earlier one, or from its start",
                *(location, fault, self.name),
            )
        return None

    def delete_old_checkpoints(self) -> None:
        """Delete the checkpoints that the journal knows, but the newest `KEPT_CHECKPOINTS`."""
        stored = [event["checkpoint"] for event in self.journal.read() if event.get("checkpoint")]
        # Newest first. A checkpoint that was lost and written again counts as new.
        newest = list(dict.fromkeys(Folder(location).name for location in reversed(stored)))
        there = self.checkpoints.list_folders()
        for name in set(newest[KEPT_CHECKPOINTS:]).intersection(there):
            (self.checkpoints / name).delete()

    def epoch_of(self, checkpoint: str | None) -> int:
        """After which epoch a checkpoint was written; 0 for none.

        Args:
            checkpoint: As `last_checkpoint` gives it.
        """
        for event in self.journal.read():
            stored = event.get("checkpoint")
            if checkpoint and stored and self.find_checkpoint(stored) == checkpoint:
                return int(event.get("epoch") or event.get("epochs") or 0)
        return 0

    @property
    def trained(self) -> bool:
        """Whether training and test are complete: they were reported, and the last checkpoint is sound.

        A report that a damaged journal lacks comes back with the checkpoint from which the run goes on.
        """
        if self.is_finished:
            return True
        checkpoint = (self.journal.last("test") or {}).get("checkpoint")
        if checkpoint is None or self.journal.last("untrained") is None:
            return False
        reported = [event["epoch"] for event in self.journal.epochs()]
        is_whole = reported == list(range(1, self.config.train.epochs + 1))
        return is_whole and self.find_checkpoint(checkpoint) == self.last_checkpoint

    @cached_property
    def config(self) -> ExperimentConfig:
        """The run's settings."""
        return parse(self._stored.config)

    @property
    def fingerprint(self) -> str:
        """Identifies the run: of its settings, and of the data and weights it starts from."""
        return self._stored.fingerprint

    @property
    def digests(self) -> dict[str, str]:
        """Table name to digest, of all that the run reads."""
        return self._stored.tables

    @property
    def splits(self) -> list[str]:
        """The splits whose views it reads."""
        return list(self._stored.views)

    def view(self, split: str) -> Table:
        """The view of a split: where the run found it, or else in the catalog given, or in the workspace's.

        Raises:
            data_catalog.errors.CatalogError: It is in none of them.
        """
        stored = self._stored.views[split]
        own = (self.parent.parent / CATALOG).location
        catalogs = dict.fromkeys(filter(None, (stored.catalog or own, self.catalog, own)))
        wrong: CatalogError | None = None
        for catalog in catalogs:
            try:
                table = open_table(catalog, stored.dataset, TableKind.VIEW, stored.key)
            except CatalogError as error:
                # Where the run found it may be out of reach from here.
                wrong = wrong or error
                continue
            if table is not None:
                return table
        raise wrong or CatalogError(
            f"the {split} view {stored.key} of run {self.name} is not in {' or '.join(catalogs)}; name "
            "the catalog that has it with --catalog"
        )

    def _stored_catalog(self, catalog: str) -> str | None:
        """A catalog as the run's config stores it: None for that of the workspace, which may be moved."""
        return None if Folder(catalog) == self.parent.parent / CATALOG else str(catalog)

    @property
    def is_finished(self) -> bool:
        """Whether the run has its result; it keeps that forever."""
        self._is_finished = self._is_finished or self.has_file(RESULT_FILE)
        return self._is_finished

    @property
    def result(self) -> RunResult | None:
        """The finished run's result, or None.

        Raises:
            DamagedFileError: The file is damaged.
        """
        if self._result is None:
            try:
                stored = self.read_record(
                    RESULT_FILE, _StoredResult, "move it away, and the run's command makes it again"
                )
            except FileNotFoundError:
                return None
            facts = {name: getattr(stored, name) for name in RunResult.model_fields}
            facts |= {"folder": self.location, "checkpoint": self.find_checkpoint(stored.checkpoint)}
            self._result = RunResult(**facts)
        return self._result

    @property
    def finished_result(self) -> RunResult:
        """The result of a run that must be finished.

        Raises:
            RunFolderError: The run is not finished.
            DamagedFileError: The file is damaged.
        """
        result = self.result
        if result is None:
            raise RunFolderError(f"{self} is not finished; run the command that started it again")
        return result

    @property
    def mlflow(self) -> MlflowState | None:
        """Where MLflow has the run; None where nothing was logged yet."""
        return read_state(self)

    def logged_in(self, study: str) -> MlflowState | None:
        """Where MLflow has the run as a child of a study; None where nothing was logged yet."""
        return read_state(self, child_file(study))

    def write_result(self, result: RunResult) -> None:
        """Store the result, without the absolute path of the folder; from then on the run is finished.

        It is noted as the one finished last.
        """
        stored = result.model_dump(mode="json", exclude={"folder"})
        if Folder(result.checkpoint).parent == self:
            stored["checkpoint"] = Folder(result.checkpoint).name
        self.write(RESULT_FILE, json.dumps(stored, indent=2, allow_nan=False) + "\n")
        self.parent.write(LAST_FILE, _LastRun(run=self.name).to_json() + "\n")

    @cached_property
    def _stored(self) -> StoredConfig:
        stored = self._read_config()
        if stored is None:
            raise RunFolderError(
                f"{self} is no run's folder: it has no {CONFIG_FILE}; name one in WORKSPACE/{TRAIN}"
            )
        return stored

    def _read_config(self) -> StoredConfig | None:
        try:
            return self.read_record(CONFIG_FILE, StoredConfig, self._remedy)
        except FileNotFoundError:
            return None

    @property
    def _remedy(self) -> str:
        return f"restore it from a copy, or move the folder {self} away and train the run anew"
