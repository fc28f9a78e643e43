"""Where MLflow is, and what it has of a run: tracking URIs, and the records that runs and studies keep."""

import logging
import os
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Self

from pydantic import Field

from data_catalog.errors import DamagedFileError
from data_catalog.records import Record
from data_catalog.storage.folders import Folder
from data_catalog.storage.local_copies import local_files
from experiments.experiment_config import ConfigError
from stmi.network import why_unreachable
from stmi.uris import without_credentials

logger = logging.getLogger(__name__)

MLFLOW_FILE = "mlflow.json"
"""What MLflow has of a run or a study, in its folder."""
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_STORE = "mlflow.db"
_OWN = f"sqlite:///{_STORE}"
"""How a stored record calls the embedded store of its workspace, which may be moved or copied."""


def child_file(study: str) -> str:
    """What MLflow has of a run as a child of a study, in the folder of the run."""
    return f"mlflow-{study}.json"


def local_store(workspace: Folder | Path) -> str:
    """URI of the embedded store of a workspace: a SQLite file in it, or on this machine if it is at a URI."""
    return f"sqlite:///{local_files(workspace) / _STORE}"


def artifacts_folder(workspace: Folder | Path) -> Path:
    """Where the embedded store of a workspace keeps artifacts."""
    return local_files(workspace) / "mlartifacts"


def quiet_mlflow() -> None:
    """Keep MLflow, once it is imported, from logging: its errors are raised, and reported in one line."""
    for library in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


@cache
def open_local_store(workspace: Folder) -> None:
    """Make ready the embedded store of a workspace: its folder, and where it looks for artifacts.

    MLflow stores absolute places of artifacts, which a workspace that was moved or copied takes along.

    Raises:
        ConnectionError: The file is damaged, or is being written.
    """
    file = local_files(workspace) / _STORE
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        return
    try:
        _correct_artifact_uris(file, artifacts_folder(workspace).as_uri())
    except sqlite3.OperationalError as error:
        raise ConnectionError(
            f"MLflow's store {file} cannot be used ({error}); wait for the process that uses it, or correct "
            "the rights"
        ) from error
    except sqlite3.DatabaseError as error:
        raise ConnectionError(
            f"MLflow's store {file} is damaged ({error}); restore it from a copy, or move it away and fill a "
            "new one with `python experiments/report.py --mlflow-again`"
        ) from error


def _correct_artifact_uris(file: Path, own: str) -> None:
    """Let a store look for artifacts in its own workspace."""
    with closing(sqlite3.connect(file, timeout=60)) as store, store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return
        locations = store.execute(
            "SELECT DISTINCT artifact_location FROM experiments "
            "WHERE artifact_location || '/' LIKE 'file:%/mlartifacts/%'"
        )
        for (old,) in locations.fetchall():
            # A server gives each experiment a folder of its own in that of all artifacts.
            new = f"{own}/{f'{old}/'.rpartition('/mlartifacts/')[2]}".rstrip("/")
            if new == old:
                # Nothing is written where nothing was moved: the workspace may be read-only.
                continue
            moved = "artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?"
            store.execute(f"UPDATE runs SET {moved}", [new, len(old) + 1, len(old) + 1, f"{old}/"])
            store.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", [new, old]
            )


def resolve_tracking_uri(uri: str | None, workspace: Folder | Path) -> str:
    """The tracking URI that was asked for, or $MLFLOW_TRACKING_URI, or the workspace's embedded store.

    Raises:
        ConfigError: MLflow knows no such kind of store.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or local_store(workspace)
    scheme = chosen.partition("://")[0].partition("+")[0]
    if chosen.partition(":")[0] != "databricks" and scheme not in SCHEMES:
        raise ConfigError(
            f"MLflow's tracking URI {without_credentials(chosen)!r} (--tracking-uri, $MLFLOW_TRACKING_URI): "
            "it is neither a server nor a database; expected one such as http://127.0.0.1:5000 or "
            "sqlite:////data/mlflow.db"
        )
    return chosen


def ask_server(uri: str) -> None:
    """Make sure that a server listens, since MLflow's client waits long for it; a database is not asked.

    Raises:
        ConnectionError: None does; says why, and not which server it is.
    """
    if uri.startswith(("http://", "https://")) and (reason := why_unreachable(uri)):
        raise ConnectionError(reason)


class MlflowRun(Record):
    """Where MLflow has a run or a study."""

    uri: str
    """Tracking URI, without user name and password."""
    run_id: str | None = None
    """None as long as MLflow did not answer."""
    experiment_id: str | None = None

    @property
    def page(self) -> str | None:
        """Page of the run in MLflow's UI; None for a database, which has no page without a server."""
        if self.run_id is None or not self.uri.startswith("http"):
            return None
        return f"{self.uri}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def portable(self, folder: Folder) -> Self:
        """The same as it is stored in the folder of a run or a study: without the path of its workspace."""
        is_own = self.uri == local_store(folder.parent.parent)
        return self.model_copy(update={"uri": _OWN}) if is_own else self

    def located(self, folder: Folder) -> Self:
        """The same as it is read from the folder of a run or a study.

        Older versions stored absolute paths, which hold no longer where the workspace was moved.
        """
        file = Path(self.uri.removeprefix("sqlite:///"))
        is_gone = self.uri.startswith("sqlite:///") and file.name == _STORE and not file.exists()
        is_own = self.uri == _OWN or is_gone
        return self.model_copy(update={"uri": local_store(folder.parent.parent)}) if is_own else self


class LoggedRun(MlflowRun):
    """Where MLflow has a run that has just ended."""

    behind: bool
    """Whether MLflow could not be reached at the end; the journal keeps what it lacks."""


class MlflowState(MlflowRun):
    """What was logged of a run so far (`mlflow.json`)."""

    described: bool = False
    """Whether parameters and tags were logged."""
    sent: int = 0
    """How many events of the journal were logged."""
    files: dict[str, str] = Field(default_factory=dict)
    """File name to the digest of what was logged."""
    status: str = Field(default="", exclude=True)
    """Of older versions; the store itself knows it."""
    uuid: str | None = Field(default=None, alias="identity")
    """Identifies the run in any store; stored under a key from before the name."""


def read_state(folder: Folder, name: str = MLFLOW_FILE) -> MlflowState | None:
    """What MLflow has of a run or a study; None where nothing was logged yet, or the file is damaged.

    A damaged file stops nothing, since the journal has all that was logged.

    Args:
        folder: Folder of the run or the study.
        name: Name of the file.
    """
    try:
        return folder.read_record(name, MlflowState, "it is logged to MLflow as a new run").located(folder)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        logger.warning("%s", error)
        return None
