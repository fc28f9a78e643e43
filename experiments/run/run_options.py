"""Where runs are kept and logged, and what their workers get: one value for every function that needs it."""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

from data_catalog.storage import filesystems
from data_catalog.storage.folders import Folder
from data_catalog.storage.node_probe import NeededFolder
from experiments.experiment_config import ConfigError
from experiments.tracking.mlflow_store import local_store, resolve_tracking_uri

logger = logging.getLogger(__name__)

CATALOG = "catalog"
"""Folder of a workspace's own catalog."""


@dataclass(frozen=True)
class RunOptions:
    """Options that do not identify a run: under other options it is still the same run.

    Attributes:
        workspace: Workspace of all runs and studies; all nodes must reach it.
        catalog: Root of the catalog, path or URI.
        storage: Folder or URI for checkpoints; None for each run's own folder.
        tracking_uri: MLflow's; None for a run that others log, such as the study that it belongs to.
        gpus_per_worker: May be a fraction; None for one each where the cluster has GPUs, 0 to train on CPUs.
        skips_not_finite: Whether a batch whose loss or gradient is not finite is left out, and noted, instead
            of ending the run.
        raises_micro_batches: Whether a run whose step runs out of memory goes on with more micro-batches, in
            place of ending.
        deterministic: Whether training takes PyTorch's deterministic algorithms.
        fewest_workers: With how many workers a run goes on whose cluster has no room for all; None where it
            waits for room for all.
        study: Folder of the study that the run belongs to, which may be asked to stop; or None.
        writes_event_files: Whether event files of TensorBoard are written from the journals.
    """

    workspace: Folder
    catalog: str
    storage: str | None = None
    tracking_uri: str | None = None
    gpus_per_worker: float | None = None
    skips_not_finite: bool = False
    raises_micro_batches: bool = False
    deterministic: bool = False
    fewest_workers: int | None = None
    study: Folder | None = None
    writes_event_files: bool = False

    @classmethod
    def resolve(
        cls,
        workspace: str | Path | Folder,
        catalog: str | None = None,
        storage: str | None = None,
        tracking_uri: str | None = None,
        gpus_per_worker: float | None = None,
        skips_not_finite: bool = False,
    ) -> "RunOptions":
        """Options with absolute locations, since workers run in other folders.

        Args:
            workspace: A folder or URI.
            catalog: A folder or URI; None for the workspace's own.
            storage: A folder or URI; None for each run's own folder.
            tracking_uri: None for $MLFLOW_TRACKING_URI, or the workspace's embedded store.
            gpus_per_worker: As the attribute.
            skips_not_finite: As the attribute.

        Raises:
            ConfigError: MLflow does not know the kind of store.
            CatalogError: No filesystem handles a URI, or it holds credentials.
        """
        folder = resolve_workspace(workspace)
        if storage is not None:
            filesystems.open_root(storage)
        chosen = resolve_tracking_uri(tracking_uri, folder)
        if not folder.is_local and chosen == local_store(folder):
            logger.warning(
                "MLflow: runs are logged to %s, a file of this machine, since workspace %s is at a URI; name "
                "a server with --tracking-uri, or in $MLFLOW_TRACKING_URI",
                *(chosen, folder),
            )
        return cls(
            folder,
            resolve_catalog(folder, catalog),
            None if storage is None else _absolute(storage),
            chosen,
            gpus_per_worker,
            skips_not_finite,
        )

    def needed_folders(self, *, trials: bool) -> list[NeededFolder]:
        """The folders that every node needs.

        Args:
            trials: Whether trials run there, which write all of a run; its workers write checkpoints only.
        """
        workspace = NeededFolder("workspace", self.workspace.location)
        storage = None if self.storage is None else NeededFolder("storage", self.storage)
        written = [workspace, storage] if trials else [storage or workspace]
        return [*filter(None, written), NeededFolder("catalog", self.catalog, is_written=False)]

    def without_tracking(self) -> "RunOptions":
        """The same for a run that others log. A tracking URI may hold a password, which Tune would store."""
        return replace(self, tracking_uri=None, writes_event_files=False)

    def of_study(self, study: Folder) -> "RunOptions":
        """The same for the runs of a study, which it logs, and which stop with it.

        Args:
            study: Its folder.
        """
        return replace(self.without_tracking(), study=Folder(study.location))


def resolve_workspace(workspace: str | Path | Folder) -> Folder:
    """The folder of a workspace.

    Raises:
        CatalogError: No filesystem handles its URI, or it holds credentials.
        ConfigError: Its path means another one where the path of a database is part of a URI.
    """
    folder = Folder(workspace)
    filesystems.open_root(folder.location)
    if folder.is_local and re.search(r"\?|%[0-9A-Fa-f]{2}", folder.location):
        raise ConfigError(
            f"workspace {folder.location}: `?`, and `%` with two digits, have a meaning of their own in the "
            "URIs of its databases; rename the folder, or name another one"
        )
    return folder


def resolve_catalog(workspace: Folder, catalog: str | None) -> str:
    """The absolute path or the URI of a catalog; None for the workspace's own."""
    return (workspace / CATALOG).location if catalog is None else _absolute(catalog)


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).resolve())
