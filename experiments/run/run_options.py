"""Where runs are kept and logged, and what their workers get: one value for every function that needs it."""

from dataclasses import dataclass, replace
from pathlib import Path

from data_catalog.storage import filesystems
from experiments.recipes import ConfigError
from experiments.tracking.mlflow_store import resolve_tracking_uri


@dataclass(frozen=True)
class RunOptions:
    """Options that do not identify a run: under other options it is still the same run.

    Attributes:
        workspace: Folder of all runs and studies, on a disk that all nodes share.
        catalog: Root of the catalog, path or URI.
        storage: Folder or URI for checkpoints; None for each run's own folder.
        tracking_uri: MLflow's; None for a run that others log, such as the study that it belongs to.
        gpus_per_worker: May be a fraction; None for one each where the cluster has GPUs, 0 to train on CPUs.
    """

    workspace: Path
    catalog: str
    storage: str | None = None
    tracking_uri: str | None = None
    gpus_per_worker: float | None = None

    @classmethod
    def resolve(
        cls,
        workspace: str | Path,
        catalog: str | None = None,
        storage: str | None = None,
        tracking_uri: str | None = None,
        gpus_per_worker: float | None = None,
    ) -> "RunOptions":
        """Options with absolute locations, since workers run in other folders.

        Args:
            workspace: A folder.
            catalog: A folder or URI; None for the workspace's own.
            storage: A folder or URI; None for each run's own folder.
            tracking_uri: None for $MLFLOW_TRACKING_URI, or the workspace's embedded store.
            gpus_per_worker: As the attribute.

        Raises:
            ConfigError: The workspace is a URI, or MLflow does not know the kind of store.
            CatalogError: No filesystem handles the storage's URI, or it holds credentials.
        """
        folder = resolve_workspace(workspace)
        if storage is not None:
            filesystems.open_root(storage)
        return cls(
            folder,
            resolve_catalog(folder, catalog),
            None if storage is None else _absolute(storage),
            resolve_tracking_uri(tracking_uri, folder),
            gpus_per_worker,
        )

    def without_tracking(self) -> "RunOptions":
        """The same for a run that others log. A tracking URI may hold a password, which Tune would store."""
        return replace(self, tracking_uri=None)


def resolve_workspace(workspace: str | Path) -> Path:
    """The absolute path of a workspace.

    Raises:
        ConfigError: It is a URI.
    """
    if "://" in str(workspace):
        raise ConfigError(
            f"--workspace={workspace}: runs are kept in a folder that all nodes share, not at a URI"
        )
    return Path(workspace).resolve()


def resolve_catalog(workspace: Path, catalog: str | None) -> str:
    """The absolute path or the URI of a catalog; None for the workspace's own."""
    return str(workspace / "catalog") if catalog is None else _absolute(catalog)


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).resolve())
