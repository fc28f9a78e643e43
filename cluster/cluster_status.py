"""What the commands of a local cluster print: its state, and the processes that ended."""

from typing import Literal

from data_catalog.records import Record

ServiceState = Literal["well", "not answering", "died", "not started"]


class ServiceStatus(Record):
    """One service of a cluster."""

    state: ServiceState
    process: int | None
    """Number of its first process; None where that does not run."""
    log: str
    """Its log file."""


class ClusterStatus(Record):
    """A cluster: its services, and where something was started what a user needs to reach them."""

    state: Literal["up", "partly up", "down"]
    services: dict[str, ServiceStatus]
    """By name: `ray` and `mlflow`."""
    folder: str
    """Folder of the cluster."""


class StartedCluster(ClusterStatus):
    """A cluster of which something was started."""

    ray_address: str
    dashboard: str
    """Address of Ray's dashboard, to which jobs are submitted."""
    mlflow: str
    """Address of the MLflow server."""
    backend: str
    """MLflow's database, without credentials."""
    earlier_backend: str | None = None
    """A database with runs that an older version of this command logged, if there is one."""
    environment: dict[str, str]
    """What a user exports; it contains no secret."""


class EndedProcesses(Record):
    """What `down` ended."""

    ended: dict[str, int]
    """Number of processes, by service."""
