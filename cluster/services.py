"""The two services of a local cluster: how each is started, and how its health is checked.

A Ray head listens on all interfaces of the machine except for its dashboard, so it runs with token
authentication: a client without the token is refused everywhere. MLflow has no authentication and listens on
loopback only. No secret appears in a command line, which every user of the machine can read.
"""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stmi.network import spare_loopback

LOOPBACK = "127.0.0.1"
USUAL_PORTS = {"ray": {"gcs": 6379, "dashboard": 8265, "client": 10001}, "mlflow": {"http": 5000}}
"""The ports of each service by role. Users know these numbers, so they are used where they are free."""
_NOT_INHERITED = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_JOB_SUBMIT_HOOK",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_BACKEND_STORE_URI",
)
"""Variables of the users of a cluster, not of its services; the last one holds a password."""
_OWN_NAMES = ("localhost", LOOPBACK, "[[]::1]")
"""How a browser names this machine; a pattern, in which [ would begin a set of letters."""
_HEALTH_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class ClusterSettings:
    """What the services of one cluster are started with.

    Attributes:
        workspace: Where submitted jobs keep their runs.
        token_file: Holds the token that Ray asks for.
        sessions: The Ray head's own folder for sessions. In the usual one, which the machine shares, jobs
            find the cluster that was started last. Its path is short, because sockets lie below it.
        artifacts: Folder of MLflow's artifacts, which clients write and read themselves.
        earlier_artifacts: Folder of the artifacts that earlier versions had the server write and read.
        ports: Ports of each service by role, as in `USUAL_PORTS`.
        backend_store_uri: MLflow's database, with user name and password where it asks for them.
    """

    workspace: Path
    token_file: Path
    sessions: Path
    artifacts: Path
    earlier_artifacts: Path
    ports: Mapping[str, Mapping[str, int]]
    backend_store_uri: str

    @property
    def tracking_uri(self) -> str:
        """The MLflow server, which submitted jobs use."""
        return f"http://{LOOPBACK}:{self.ports['mlflow']['http']}"

    @property
    def dashboard(self) -> str:
        """The dashboard of Ray, to which jobs are submitted."""
        return f"http://{LOOPBACK}:{self.ports['ray']['dashboard']}"


@dataclass(frozen=True)
class Service:
    """How a service is started and checked.

    Attributes:
        command: Program and arguments.
        environment: All of its environment.
        port: Where it answers.
        is_healthy: Sends a request to the port, where another program may answer; slow, and never raises.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    port: int
    is_healthy: Callable[[], bool]


def ray_head(settings: ClusterSettings) -> Service:
    """A Ray head."""
    ports = settings.ports["ray"]
    command = (
        *_program("ray"),
        *("start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={settings.sessions}"),
        f"--port={ports['gcs']}",
        *("--include-dashboard=true", f"--dashboard-host={LOOPBACK}"),
        f"--dashboard-port={ports['dashboard']}",
        f"--ray-client-server-port={ports['client']}",
        # Fixed ports would prevent a second cluster on this machine.
        *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
    )
    environment = _environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.token_file),
        # With two Ray clusters on this machine, Ray's own processes would not find theirs.
        "RAY_API_SERVER_ADDRESS": settings.dashboard,
        # After `ray job stop` a training stores a checkpoint; Ray would kill it after three seconds.
        "RAY_JOB_STOP_WAIT_TIME_S": os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "60"),
        # Jobs inherit these.
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "STMI_WORKSPACE": str(settings.workspace),
    }

    def is_healthy() -> bool:
        file = settings.token_file
        token = file.read_text(encoding="ascii") if file.exists() else ""
        return answers(f"{settings.dashboard}/api/jobs/", {"Authorization": f"Bearer {token}"})

    return Service(command, environment, ports["dashboard"], is_healthy)


def mlflow_server(port: int, backend_store_uri: str, artifacts: Path, earlier_artifacts: Path) -> Service:
    """An MLflow tracking server.

    Artifacts of new experiments have the address of their folder, not that of the server, so that a client of
    the database finds them too, with and without the server.

    Args:
        port: Where it listens.
        backend_store_uri: Database, with user name and password where it asks for them.
        artifacts: Folder of the artifacts of new experiments.
        earlier_artifacts: Folder of those whose address is that of the server (`mlflow-artifacts:`).
    """
    command = (
        *_program("mlflow"),
        *("server", f"--host={LOOPBACK}", f"--port={port}", "--workers=1"),
        f"--default-artifact-root={artifacts.as_uri()}",
        f"--artifacts-destination={earlier_artifacts}",
        # A request by a page of another host through the user's browser is refused; not one that comes from
        # another port of the user's machine, through a tunnel.
        f"--allowed-hosts={','.join(name + port for name in _OWN_NAMES for port in ('', ':*'))}",
    )
    # Many of MLflow's variables are options of its server.
    inherited = {name: value for name, value in _environment().items() if not name.startswith("MLFLOW_")}
    environment = inherited | {
        "MLFLOW_BACKEND_STORE_URI": backend_store_uri,
        # Halves its memory; runs need none of these jobs.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return Service(command, environment, port, lambda: answers(f"http://{LOOPBACK}:{port}/health", {}))


ServiceMaker = Callable[[ClusterSettings], Service]

SERVICES: dict[str, ServiceMaker] = {
    "ray": ray_head,
    "mlflow": lambda settings: mlflow_server(
        settings.ports["mlflow"]["http"],
        settings.backend_store_uri,
        settings.artifacts,
        settings.earlier_artifacts,
    ),
}
"""What makes each service, by name."""


def _program(name: str) -> tuple[str, ...]:
    # That of this environment, also where it is not activated.
    return sys.executable, str(Path(sys.executable).parent / name)


def _environment() -> dict[str, str]:
    """What a service inherits; it asks servers of this machine without a proxy, and so do jobs."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # `python` in a submitted command must be that of this environment.
    folder = str(Path(sys.executable).parent)
    path = environment.get("PATH", os.defpath).split(os.pathsep)
    environment["PATH"] = os.pathsep.join([folder, *(part for part in path if part != folder)])
    spare_loopback(environment)
    return environment


def answers(url: str, headers: Mapping[str, str]) -> bool:
    """Whether a server answers a GET request with success; never raises."""
    # A proxy that the environment names does not reach this machine's loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=_HEALTH_TIMEOUT_SECONDS):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False
