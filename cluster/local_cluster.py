"""A Ray head and an MLflow server on this machine, to which jobs are submitted.

The folder WORKSPACE/cluster, which only its owner can open, holds the state, the token and the logs. MLflow's
database and artifacts are those that runs without a cluster use too: WORKSPACE/mlflow.db and
WORKSPACE/mlartifacts. Versions before kept a database and artifacts in WORKSPACE/cluster; they stay there.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from cluster.cluster_state import ClusterError, ClusterState
from cluster.cluster_status import ClusterStatus, EndedProcesses, ServiceState, ServiceStatus, StartedCluster
from cluster.processes import (
    end_processes,
    find_family,
    find_free_port,
    find_process,
    last_lines,
    listen,
    process_key,
    process_keys,
    start_process,
)
from cluster.services import (
    LOOPBACK,
    SERVICES,
    USUAL_PORTS,
    ClusterSettings,
    Service,
    ServiceMaker,
)
from stmi.network import NO_PROXY, spare_loopback
from stmi.uris import without_credentials

HOOKS = Path(__file__).resolve().parent / "submit_hook"
EXPORTED = (
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_JOB_SUBMIT_HOOK",
    "MLFLOW_TRACKING_URI",
)
"""What a user exports for this cluster alone; PYTHONPATH and NO_PROXY may have a use beside it."""
_POLL_SECONDS = 0.25
_END_TIMEOUT_SECONDS = 15.0
"""Time to end in good order: Ray takes some seconds to end its processes."""


class LocalCluster:
    """A Ray head and an MLflow server on this machine.

    Args:
        workspace: Folder of runs.
        timeout_seconds: Time that a service has to answer.
        services: What makes each service, by name.
        usual_ports: The ports to use where they are free, by service and role.
    """

    def __init__(
        self,
        workspace: Path,
        timeout_seconds: float = 120.0,
        services: Mapping[str, ServiceMaker] = SERVICES,
        usual_ports: Mapping[str, Mapping[str, int]] = USUAL_PORTS,
    ) -> None:
        self.workspace = workspace.resolve()
        self.folder = self.workspace / "cluster"
        self.timeout_seconds = timeout_seconds
        self.token_file = self.folder / "token"
        self._makers = services
        self._usual_ports = usual_ports
        self._state_file = self.folder / "state.json"
        self._state: ClusterState
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        # Not in the folder itself, whose path may be too long for the sockets below it.
        self._private = Path("/tmp") / f"stmi-ray-{os.getuid()}-{name}"
        # Ray makes its own folder readable to everybody.
        self._sessions = self._private / "ray"

    def up(self, backend_store_uri: str | None = None) -> ClusterStatus:
        """Start the services that do not run.

        Args:
            backend_store_uri: MLflow's database; None for the one that it has, or the workspace's file.

        Raises:
            ClusterError: A service does not answer (with the end of its log), or the request cannot be met.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with self._locked():
            healthy = {name for name in self._makers if self._is_healthy(name)}
            missing = [name for name in self._makers if name not in healthy]
            backend = self._choose_backend(backend_store_uri, "mlflow" in healthy)
            for name in missing:
                # What a crash left may hold the port.
                end_processes(self._keys(name), _END_TIMEOUT_SECONDS)
            self._state.ports = self._choose_ports(healthy)
            self._state.backend = without_credentials(backend)
            if "ray" in missing:
                self._make_token()
                make_private_folder(self._private)
            services = {name: self._service(name, backend) for name in missing}
            children = {name: self._start(name, service) for name, service in services.items()}
            for name, service in services.items():
                self._wait(name, service, children[name], backend)
            for name in self._makers:
                self._list_processes(name)
            return self._describe()

    def status(self) -> ClusterStatus:
        """The state of the cluster, also where nothing was started.

        Raises:
            ClusterError: The state file is damaged, or belongs to another machine.
        """
        self._state = ClusterState.load(self._state_file)
        return self._describe()

    def down(self) -> EndedProcesses:
        """End what `up` started, and nothing else. Logs, and MLflow's database and artifacts, stay.

        Raises:
            ClusterError: The state file is damaged, or belongs to another machine; or a process does not end.
        """
        if not self.folder.is_dir():
            return EndedProcesses(ended=dict.fromkeys(self._makers, 0))
        with self._locked():
            ended = {name: end_processes(self._keys(name), _END_TIMEOUT_SECONDS) for name in self._makers}
            left = [process.pid for name in self._makers for process in find_family(self._keys(name))]
            if left:
                raise ClusterError(f"processes {left} do not end, even when killed; see what they wait for")
            for session in self._sessions.glob("session_2*"):
                target = self.folder / "logs" / session.name
                if (session / "logs").is_dir() and not target.exists():
                    target.parent.mkdir(exist_ok=True)
                    shutil.move(session / "logs", target)
            shutil.rmtree(self._private, ignore_errors=True)
            self.token_file.unlink(missing_ok=True)
            self._state_file.unlink(missing_ok=True)
            return EndedProcesses(ended=ended)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other commands away from this cluster, and load its state."""
        with (self.folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ClusterError(
                    f"another command works on {self.folder} at this moment; wait until it has finished"
                ) from None
            except OSError as error:
                raise ClusterError(
                    f"{self.folder} cannot be locked ({error.strerror}); name a folder on a disk of this "
                    "machine with --workspace"
                ) from None
            self._state = ClusterState.load(self._state_file)
            yield

    def _describe(self) -> ClusterStatus:
        services = {name: self._describe_service(name) for name in self._makers}
        healthy = [service.state == "well" for service in services.values()]
        status = ClusterStatus(
            state="up" if all(healthy) else "partly up" if any(healthy) else "down",
            services=services,
            folder=str(self.folder),
        )
        if not self._state.ports:
            return status
        settings = self._settings()
        address = f"{LOOPBACK}:{settings.ports['ray']['gcs']}"
        python_path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        environment = {
            "RAY_ADDRESS": address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_JOB_SUBMIT_HOOK": "stmi_upload.refuse_too_large",
            "MLFLOW_TRACKING_URI": settings.tracking_uri,
            "PYTHONPATH": os.pathsep.join([str(HOOKS), *(p for p in python_path if p != str(HOOKS))]),
        }
        if any(name.lower().endswith("_proxy") and name not in NO_PROXY for name in os.environ):
            # `ray job submit` and MLflow's client would ask the proxy for this machine.
            exceptions = dict(os.environ)
            spare_loopback(exceptions)
            environment |= {name: exceptions[name] for name in NO_PROXY}
        return StartedCluster(
            **dict(status),
            ray_address=address,
            dashboard=settings.dashboard,
            mlflow=settings.tracking_uri,
            backend=self._state.backend,
            earlier_backend=self._earlier_backend(),
            environment=environment,
        )

    def _describe_service(self, name: str) -> ServiceStatus:
        state: ServiceState
        runs = self._runs(name)
        if not self._keys(name):
            state = "not started"
        elif not runs:
            state = "died"
        else:
            state = "well" if self._is_healthy(name) else "not answering"
        process = self._keys(name)[0][0] if runs else None
        return ServiceStatus(state=state, process=process, log=str(self._log(name)))

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _keys(self, name: str) -> list[tuple[int, float]]:
        return self._state.processes.get(name, [])

    def _runs(self, name: str) -> bool:
        """Whether the first process of a service runs."""
        return any(find_process(key) is not None for key in self._keys(name)[:1])

    def _is_healthy(self, name: str) -> bool:
        if not self._runs(name):
            return False
        service = self._service(name)
        return service.is_healthy() and self._listens(name, service)

    def _listens(self, name: str, service: Service) -> bool:
        """Whether a service has its port; another program may have taken it, and answer there."""
        return listen(find_family(self._keys(name)), service.port)

    def _service(self, name: str, backend: str = "") -> Service:
        return self._makers[name](self._settings(backend))

    def _settings(self, backend: str = "") -> ClusterSettings:
        return ClusterSettings(
            workspace=self.workspace,
            token_file=self.token_file,
            sessions=self._sessions,
            artifacts=self.workspace / "mlartifacts",
            earlier_artifacts=self.folder / "mlartifacts",
            ports=self._state.ports,
            backend_store_uri=backend,
        )

    def _choose_backend(self, asked: str | None, healthy: bool) -> str:
        """MLflow's database, with its password where MLflow must be started."""
        usual = f"sqlite:///{self.workspace / 'mlflow.db'}"
        current = self._state.backend or usual
        if asked is not None and healthy and without_credentials(asked) != current:
            raise ClusterError(
                f"--backend-store-uri={without_credentials(asked)}, but the MLflow server runs on {current}; "
                "run `down` first"
            )
        if asked is None and not healthy and not current.startswith("sqlite:"):
            raise ClusterError(
                f"the MLflow server ran on {current}, whose password is not kept: give --backend-store-uri "
                "(or $MLFLOW_BACKEND_STORE_URI) again, or run `down` first to go on with a SQLite file"
            )
        return asked or current

    def _earlier_backend(self) -> str | None:
        """The database that older versions kept apart from that of the workspace, unless it is served."""
        file = self.folder / "mlflow.db"
        uri = f"sqlite:///{file}"
        return uri if file.exists() and self._state.backend != uri else None

    def _choose_ports(self, healthy: set[str]) -> dict[str, dict[str, int]]:
        """The ports of the healthy services; for the others the ports they had, where they are free."""
        before = self._state.ports
        ports = {name: before[name] for name in self._makers if name in healthy}
        for name in self._makers:
            for role, usual in () if name in healthy else self._usual_ports[name].items():
                previous = before.get(name, {}).get(role)
                taken = [port for roles in ports.values() for port in roles.values()]
                ports.setdefault(name, {})[role] = find_free_port(previous, usual, taken=taken)
        if "ray" in healthy and ports["mlflow"] != before["mlflow"]:
            raise ClusterError(
                f"port {before['mlflow']['http']} is taken by another program, and the jobs of the Ray head "
                "send their runs there: end that program, or run `down` and `up` for other ports"
            )
        return ports

    def _make_token(self) -> None:
        self.token_file.unlink(missing_ok=True)
        with os.fdopen(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))

    def _start(self, name: str, service: Service) -> subprocess.Popen[bytes]:
        child = start_process(service.command, service.environment, self._log(name), self.folder)
        self._state.processes[name] = [process_key(psutil.Process(child.pid))]
        self._state.save(self._state_file)
        return child

    def _list_processes(self, name: str) -> None:
        """Save the processes that a service has now: if the first one crashes, the others may go on."""
        first, *_ = known = self._keys(name)
        current = process_keys(find_family(known))
        self._state.processes[name] = [first, *(key for key in current if key[0] != first[0])]
        self._state.save(self._state_file)

    def _wait(self, name: str, service: Service, child: subprocess.Popen[bytes], backend: str) -> None:
        """Wait until a service answers.

        Raises:
            ClusterError: It ended, took too long, or another program has its port; with the end of its log.
                It is ended.
        """
        deadline = time.monotonic() + self.timeout_seconds
        while not (answers := service.is_healthy()) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if answers and self._listens(name, service):
            return
        if answers:
            what = f"could not have port {service.port}, where another program answers"
        elif child.returncode is not None:
            what = f"ended with status {child.returncode}"
        else:
            what = f"did not answer within {self.timeout_seconds:.0f} s"
        self._list_processes(name)
        end_processes(self._keys(name), _END_TIMEOUT_SECONDS)
        log = last_lines(self._log(name)).replace(backend, without_credentials(backend))
        raise ClusterError(
            f"{name} {what}; {self._log(name)} ends with\n{log}\n"
            "What else was started stays; `up` tries again, `down` ends it"
        )


def make_private_folder(folder: Path) -> None:
    """Make a folder below /tmp that only its owner can open.

    Raises:
        ClusterError: It exists already and belongs to another user, or others can open it.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if folder.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise ClusterError(f"{folder} must be a folder of yours that nobody else can open; remove it")
