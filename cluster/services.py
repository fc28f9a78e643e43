"""The two services of a place to submit to: how each is started, and what says that it is well.

A Ray head listens on all interfaces of the machine except for its dashboard, so it runs with token
authentication: who does not know the token is refused everywhere. MLflow asks nobody who they are, and
listens on loopback only. No secret stands in a command line, where every user of the machine could read it.
"""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
PORTS = {"ray": {"gcs": 6379, "dashboard": 8265, "client": 10001}, "mlflow": {"http": 5000}}
"""The ports of each service, and which it gets where that is free: the one that its users know."""
_NOT_INHERITED = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_JOB_SUBMIT_HOOK",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_BACKEND_STORE_URI",
)
"""What belongs to whoever uses a cluster, not to the services; the last one holds a password."""
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Service:
    """How a service is started and looked at.

    Attributes:
        name: "ray" or "mlflow".
        command: Program and arguments.
        environment: All of its environment.
        is_well: Asks it; slow, and never raises.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    is_well: Callable[[], bool]


def ray_head(
    ports: Mapping[str, int], token_file: Path, sessions: Path, workspace: Path, tracking_uri: str
) -> Service:
    """A Ray head.

    Args:
        ports: Its ports by name, as in `PORTS`.
        token_file: Holds the token that it asks for.
        sessions: Its own folder for sessions. In the usual one, which the whole machine shares, jobs find
            whichever cluster was started last. Short: sockets lie below it.
        workspace: Where submitted jobs keep their runs.
        tracking_uri: The MLflow server that submitted jobs use.
    """
    command = (
        *_program("ray"),
        *("start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={sessions}"),
        f"--port={ports['gcs']}",
        *("--include-dashboard=true", f"--dashboard-host={LOOPBACK}"),
        f"--dashboard-port={ports['dashboard']}",
        f"--ray-client-server-port={ports['client']}",
        # Fixed ones would keep a second cluster off this machine.
        *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
    )
    environment = _environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Where two Rays run on this machine, Ray's own processes would not find theirs.
        "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{ports['dashboard']}",
        # Jobs inherit these.
        "MLFLOW_TRACKING_URI": tracking_uri,
        "STMI_WORKSPACE": str(workspace),
    }
    url = f"http://{LOOPBACK}:{ports['dashboard']}/api/jobs/"

    def is_well() -> bool:
        token = token_file.read_text(encoding="ascii") if token_file.exists() else ""
        return _answers(url, {"Authorization": f"Bearer {token}"})

    return Service("ray", command, environment, is_well)


def mlflow_server(ports: Mapping[str, int], backend_store_uri: str, artifacts: Path) -> Service:
    """An MLflow tracking server.

    Args:
        ports: Its ports by name, as in `PORTS`.
        backend_store_uri: Database, with user name and password where it asks for them.
        artifacts: Folder of the artifacts.
    """
    port = ports["http"]
    command = (
        *_program("mlflow"),
        *("server", f"--host={LOOPBACK}", f"--port={port}", "--workers=1"),
        f"--artifacts-destination={artifacts}",
        # A page of another host that asks through the user's browser is refused.
        f"--allowed-hosts={LOOPBACK}:{port},localhost:{port}",
    )
    environment = _environment() | {
        "MLFLOW_BACKEND_STORE_URI": backend_store_uri,
        # Halves its memory; runs need none of these jobs.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    url = f"http://{LOOPBACK}:{port}/health"
    return Service("mlflow", command, environment, lambda: _answers(url, {}))


def without_credentials(uri: str) -> str:
    """A URI as it may be stored and shown: without user name, password and query, well-formed or not."""
    scheme, mark, rest = uri.partition("://")
    if not mark or scheme.startswith(("sqlite", "file")):
        return uri
    # Whatever stands before an @ may be a password, with a / or a # in it.
    return scheme + mark + rest.rpartition("@")[2].partition("?")[0]


def _program(name: str) -> tuple[str, ...]:
    # Of this environment, also where it is not activated.
    return sys.executable, str(Path(sys.executable).parent / name)


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # `python` in a submitted command is to be that of this environment.
    folder = str(Path(sys.executable).parent)
    path = environment.get("PATH", os.defpath).split(os.pathsep)
    environment["PATH"] = os.pathsep.join([folder, *(part for part in path if part != folder)])
    return environment


def _answers(url: str, headers: Mapping[str, str]) -> bool:
    # A proxy that the environment names would not know this machine's loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=_ANSWER_SECONDS):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False
