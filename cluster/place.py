"""A place to submit to, on this machine: a Ray head and an MLflow server.

Its folder (WORKSPACE/cluster, which nobody but its owner can open) holds the state, the token, the logs, and
MLflow's database and artifacts.
"""

import hashlib
import os
import secrets
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cluster import processes
from cluster.services import LOOPBACK, PORTS, Service, mlflow_server, ray_head, without_credentials
from cluster.state import ClusterError, State

HOOKS = Path(__file__).resolve().parent / "submit_hook"
_LOOK_SECONDS = 0.25
_PATIENCE_SECONDS = 15.0
"""Time to end in good order: Ray takes some seconds to end its processes."""


class Place:
    """A Ray head and an MLflow server on this machine.

    Args:
        workspace: Folder of runs.
        timeout_seconds: Time that a service has to answer.
    """

    def __init__(self, workspace: Path, timeout_seconds: float = 120.0) -> None:
        self.workspace = workspace.resolve()
        self.folder = self.workspace / "cluster"
        self.timeout_seconds = timeout_seconds
        self.token_file = self.folder / "token"
        self.state = State(self.folder)
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        # Not in the folder itself, whose path may be too long for the sockets below it.
        self._private = Path("/tmp") / f"stmi-ray-{os.getuid()}-{name}"
        # Ray opens its own folder to everybody.
        self._sessions = self._private / "ray"

    def up(self, backend_store_uri: str | None = None) -> dict[str, Any]:
        """Start what does not run; gives what `describe` gives.

        Args:
            backend_store_uri: MLflow's database; None for the one that it has, or a SQLite file.

        Raises:
            ClusterError: A service does not answer (with the end of its log), or cannot be what is asked.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with self.state.locked():
            well = {name for name in PORTS if self._is_well(name)}
            backend = self._backend(backend_store_uri, "mlflow" in well)
            for name in PORTS:
                if name not in well:
                    # What a crash left may hold the port.
                    processes.end(self.state.marks(name), _PATIENCE_SECONDS)
            self.state.ports = self._ports(well)
            self.state.backend = without_credentials(backend)
            if "ray" not in well:
                self._new_token()
                _own_folder(self._private)
            services = [self._service(name, backend) for name in PORTS if name not in well]
            children = [self._start(service) for service in services]
            for service, child in zip(services, children, strict=True):
                self._wait(service, child, backend)
            for name in PORTS:
                self.state.look(name)
            return self.describe()

    def status(self) -> dict[str, Any]:
        """What `describe` gives, also where nothing was started.

        Raises:
            ClusterError: The state is damaged, or belongs to another machine.
        """
        self.state.read()
        return self.describe()

    def down(self) -> dict[str, Any]:
        """End what `up` started, and nothing else; gives how many processes `ended`, by service.

        Logs, and MLflow's database and artifacts, stay.

        Raises:
            ClusterError: The state is damaged, or belongs to another machine; or a process does not end.
        """
        if not self.folder.is_dir():
            return {"ended": dict.fromkeys(PORTS, 0)}
        with self.state.locked():
            ended = {name: processes.end(self.state.marks(name), _PATIENCE_SECONDS) for name in PORTS}
            left = [each.pid for name in PORTS for each in processes.family(self.state.marks(name))]
            if left:
                raise ClusterError(f"processes {left} do not end, even when killed; see what they wait for")
            for session in self._sessions.glob("session_2*"):
                target = self.folder / "logs" / session.name
                if (session / "logs").is_dir() and not target.exists():
                    target.parent.mkdir(exist_ok=True)
                    shutil.move(session / "logs", target)
            shutil.rmtree(self._private, ignore_errors=True)
            self.token_file.unlink(missing_ok=True)
            self.state.forget()
            return {"ended": ended}

    def describe(self) -> dict[str, Any]:
        """What there is, JSON values only.

        `state` ("up", "partly up" or "down"), `services` (by name: `state`, one of "well", "not answering",
        "died" and "not started"; `process`; `log`), `folder`, and where something was started `ray_address`,
        `dashboard`, `mlflow`, `backend`, `environment` (what a user exports; no secret is in it).
        """
        services = {name: self._describe_service(name) for name in PORTS}
        well = [service["state"] == "well" for service in services.values()]
        document = {
            "state": "up" if all(well) else "partly up" if any(well) else "down",
            "services": services,
            "folder": str(self.folder),
        }
        if not self.state.ports:
            return document
        address = f"{LOOPBACK}:{self.state.ports['ray']['gcs']}"
        python_path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        environment = {
            "RAY_ADDRESS": address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_JOB_SUBMIT_HOOK": "stmi_upload.refuse_too_large",
            "MLFLOW_TRACKING_URI": self._tracking_uri,
            "PYTHONPATH": os.pathsep.join([str(HOOKS), *(p for p in python_path if p != str(HOOKS))]),
        }
        return document | {
            "ray_address": address,
            "dashboard": f"http://{LOOPBACK}:{self.state.ports['ray']['dashboard']}",
            "mlflow": self._tracking_uri,
            "backend": self.state.backend,
            "environment": environment,
        }

    def _describe_service(self, name: str) -> dict[str, Any]:
        alive = self.state.is_alive(name)
        if not self.state.marks(name):
            state = "not started"
        elif not alive:
            state = "died"
        else:
            state = "well" if self._is_well(name) else "not answering"
        process = self.state.marks(name)[0][0] if alive else None
        return {"state": state, "process": process, "log": str(self._log(name))}

    @property
    def _tracking_uri(self) -> str:
        return f"http://{LOOPBACK}:{self.state.ports['mlflow']['http']}"

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _is_well(self, name: str) -> bool:
        # Another program may answer at the port of one that died.
        return self.state.is_alive(name) and self._service(name).is_well()

    def _service(self, name: str, backend: str = "") -> Service:
        ports = self.state.ports[name]
        if name == "mlflow":
            return mlflow_server(ports, backend, self.folder / "mlartifacts")
        return ray_head(ports, self.token_file, self._sessions, self.workspace, self._tracking_uri)

    def _backend(self, asked: str | None, well: bool) -> str:
        """MLflow's database, with its password where it has to be started."""
        usual = f"sqlite:///{self.folder / 'mlflow.db'}"
        has = self.state.backend or usual
        if asked is not None and well and without_credentials(asked) != has:
            raise ClusterError(
                f"--backend-store-uri={without_credentials(asked)}, but the MLflow server runs on {has}; run "
                "`down` first"
            )
        if asked is None and not well and has != usual:
            raise ClusterError(
                f"the MLflow server ran on {has}, whose password is not kept: give --backend-store-uri (or "
                "$MLFLOW_BACKEND_STORE_URI) again, or run `down` first to go on with a SQLite file"
            )
        return asked or has

    def _ports(self, well: set[str]) -> dict[str, dict[str, int]]:
        """Those of the services that are well; for the others the same as before, where they are free."""
        before = self.state.ports
        ports = {name: before[name] for name in PORTS if name in well}
        for name in PORTS:
            for role, usual in () if name in well else PORTS[name].items():
                had = before.get(name, {}).get(role)
                taken = [port for roles in ports.values() for port in roles.values()]
                ports.setdefault(name, {})[role] = processes.free_port(had, usual, taken=taken)
        if "ray" in well and ports["mlflow"] != before["mlflow"]:
            raise ClusterError(
                f"port {before['mlflow']['http']} is taken by another program, and the jobs of the Ray head "
                "send their runs there: end that program, or run `down` and `up` for other ports"
            )
        return ports

    def _new_token(self) -> None:
        self.token_file.unlink(missing_ok=True)
        with os.fdopen(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))

    def _start(self, service: Service) -> subprocess.Popen[bytes]:
        child = processes.start(service.command, service.environment, self._log(service.name), self.folder)
        self.state.began(service.name, processes.mark(psutil.Process(child.pid)))
        return child

    def _wait(self, service: Service, child: subprocess.Popen[bytes], backend: str) -> None:
        """Wait until a service answers.

        Raises:
            ClusterError: It ended, or took too long and was ended; with the end of its log.
        """
        deadline = time.monotonic() + self.timeout_seconds
        while not service.is_well():
            ended = child.poll() is not None
            if ended or time.monotonic() > deadline:
                self.state.look(service.name)
                processes.end(self.state.marks(service.name), _PATIENCE_SECONDS)
                late = f"did not answer within {self.timeout_seconds:.0f} s"
                what = f"ended with status {child.returncode}" if ended else late
                log = processes.last_lines(self._log(service.name))
                raise ClusterError(
                    f"{service.name} {what}; {self._log(service.name)} ends with\n"
                    f"{log.replace(backend, without_credentials(backend))}\n"
                    "What else was started stays; `up` tries again, `down` ends it"
                )
            time.sleep(_LOOK_SECONDS)


def _own_folder(folder: Path) -> None:
    """Make a folder below /tmp that nobody else can open, and that nobody else made before."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if folder.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise ClusterError(f"{folder} must be a folder of yours that nobody else can open; remove it")
