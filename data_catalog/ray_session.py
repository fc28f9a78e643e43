"""The Ray session of a process: it joins a cluster, or starts Ray on this machine."""

import atexit
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_catalog.environment import WAITING, prepare_environment
from data_catalog.errors import CatalogError, name_first
from data_catalog.interrupts import fail, keeping_signals
from data_catalog.ray_failures import describe_failure
from stmi.network import CONNECT_SECONDS, why_unreachable
from stmi.processors import usable_processors

START_SECONDS = 180.0
"""How long a worker may take to start; on a slow disk its imports take half a minute."""
HEAD_LOOK_SECONDS = 2.0
HEAD_LOOKS = 3
"""Looks in a row without an answer, after which the head is taken for lost: nobody starts it again, if this
process has started it. One look may fail where this process, or its machine, was stopped for a while."""
RECONNECT_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""How many seconds Ray waits for its head, 60 unless set; then it ends the process, whatever it does."""
_HTTP2_SETTINGS = b"\x04"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _HTTP2_SETTINGS + b"\0" * 5
"""What a client says first, with empty settings; a server answers with its own (RFC 9113)."""
_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Where Ray's longest socket is, below its temporary folder."""
_SOCKET_BYTES = 107
"""The system's limit for the path of a socket."""


def ray_address() -> str:
    """Where Ray is to run: `local`, or the address of a cluster (RAY_ADDRESS)."""
    return os.environ.get("RAY_ADDRESS", "").strip() or "local"


def check_ray() -> None:
    """Refuse what Ray would wait for in vain, within seconds; call it before anything is made.

    Raises:
        CatalogError: RAY_ADDRESS is no address of a cluster, none answers there, or its token is missing; or
            the temporary folder cannot hold the sockets of a Ray on this machine.
    """
    address = ray_address()
    if address == "local":
        # Ray heeds TMPDIR on Linux alone.
        usual = os.environ.get("TMPDIR") if sys.platform == "linux" else None
        folder = os.environ.get("RAY_TMPDIR") or usual or "/tmp"
        longest = _SOCKET_BYTES - len(_SOCKET)
        if len(os.fsencode(folder)) > longest:
            raise CatalogError(
                f"TMPDIR={folder}: Ray's sockets lie below it, and their path would be too long; set TMPDIR, "
                f"or RAY_TMPDIR for Ray alone, to a folder of at most {longest} bytes, such as /tmp"
            )
        return
    scheme, separator, _ = address.partition("://")
    if separator:
        hint = (
            f"with `ray job submit --address {address}` jobs are submitted there"
            if scheme.startswith("http")
            else "this project joins a cluster from one of its nodes"
        )
        raise CatalogError(
            f"RAY_ADDRESS={address}: expected HOST:PORT of the cluster's head, such as 127.0.0.1:6379, "
            f"without {scheme}:// ({hint}); correct it, or unset it to run on this machine"
        )
    if os.environ.get("RAY_AUTH_MODE") == "token" and not _has_token():
        raise CatalogError(
            f"RAY_ADDRESS={address}, RAY_AUTH_MODE=token: there is no token at RAY_AUTH_TOKEN_PATH="
            f"{os.environ.get('RAY_AUTH_TOKEN_PATH', '')}; start the cluster again, or unset RAY_ADDRESS "
            "RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH to run on this machine"
        )
    if address != "auto" and (reason := why_unreachable(f"//{address}") or _why_no_head(address)):
        raise CatalogError(_no_cluster(address, reason))


WORKER_VARIABLES: dict[str, str] = {}
"""Environment of the workers beside that of this process; set before Ray is started or joined."""


def ensure_ray(include_dashboard: bool = False) -> None:
    """Join the Ray session of this process, or start one.

    A process can have only one session, so a caller who needs other settings starts Ray first. If
    `RAY_ADDRESS` is set, that cluster is joined; otherwise Ray runs on this machine until this process ends.
    Workers import from the `PYTHONPATH` of this process.

    Args:
        include_dashboard: If Ray is started, start its dashboard (on loopback) too.

    Raises:
        CatalogError: As `check_ray`, or workers do not start.
    """
    prepare_environment()
    import ray  # noqa: PLC0415 - its import takes seconds; `show` and `--help` do without

    if ray.is_initialized():
        return
    check_ray()
    # Ray would answer SIGTERM by ending the process without a word, or in a crash.
    with keeping_signals():
        if ray_address() == "local":
            _start(include_dashboard)
        else:
            _join(ray_address())
    silence_ray()
    _check_workers()
    _begin_watch()


def _begin_watch() -> None:
    """From now on another thread watches the head of the session."""
    import ray  # noqa: PLC0415

    address = ray.get_runtime_context().gcs_address
    threading.Thread(target=_watch_head, args=[address], name="head of Ray", daemon=True).start()


def _watch_head(address: str) -> None:
    """End this process where the head of Ray stays away.

    Ray itself would, after a minute in which the command seems to train, and with a line of its log.

    Args:
        address: Address of the head, HOST:PORT.
    """
    import ray  # noqa: PLC0415

    is_own = ray_address() == "local"
    patience = 0.0 if is_own else float(os.environ.get(RECONNECT_VARIABLE) or 60) / 2
    missed: list[float] = []
    while ray.is_initialized():
        reason = why_unreachable(f"//{address}")
        missed = [] if reason is None else [*missed, time.monotonic()]
        is_lost = len(missed) >= HEAD_LOOKS and missed[-1] - missed[0] >= patience
        if is_lost and ray.is_initialized():
            # Its end would wait for the head, too.
            atexit.unregister(ray.shutdown)
            first = "" if is_own else "start the cluster again, and then "
            fail(
                f"the head of Ray at {address} does not answer any more ({reason}); what is complete is "
                f"kept, so {first}run the same command again to continue"
            )
        time.sleep(HEAD_LOOK_SECONDS)


def silence_ray() -> None:
    """Keep Ray from printing a page for each process that it ends and repeats, whatever `log_to_driver` says.

    What becomes of it is an exception, of which `describe_failure` makes one line.
    """
    import ray  # noqa: PLC0415

    ray._private.worker.print_to_stdstream = lambda *data, **options: None


def require_token() -> None:
    """Let only this process and its children into the Ray that it starts, unless RAY_AUTH_MODE is `disabled`.

    Ray listens on all networks of the machine, and runs what it is sent.
    """
    from ray._raylet import Config  # type: ignore[attr-defined] # noqa: PLC0415

    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        return
    # A cluster that has ended may have left a path at which its token is no more.
    if not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray reads the mode when it is imported.
    Config.initialize("")


def _start(include_dashboard: bool) -> None:
    """Start Ray on this machine."""
    import ray  # noqa: PLC0415

    require_token()
    port = None
    if include_dashboard:
        port = _free_port()
        # Ray's processes inherit this. Otherwise they look for a dashboard on the whole machine, and fail if
        # a second Ray runs there.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    with _worker_environment():
        ray.init(
            address="local",
            num_cpus=usable_processors(),
            include_dashboard=include_dashboard,
            dashboard_port=port,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )


def _join(address: str) -> None:
    import ray  # noqa: PLC0415

    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    # The cluster was started without these. A submitted job brings its own tree and path.
    names = WAITING if job else (*WAITING, "PYTHONPATH")
    # Ray refuses a variable that the job has given its workers already.
    given = (json.loads(job or "{}").get("runtime_env") or {}).get("env_vars") or {}
    own = {name: os.environ[name] for name in names if os.environ.get(name) and name not in given}
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": own | WORKER_VARIABLES},
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise CatalogError(_no_cluster(address, describe_failure(error))) from error


def _no_cluster(address: str, reason: str) -> str:
    return (
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason}); start one, or unset RAY_ADDRESS to "
        "run on this machine"
    )


def _why_no_head(address: str) -> str | None:
    """Why what listens at an address cannot be the head of a cluster, which speaks HTTP/2; None where it may.

    Ray would ask it again for a minute, whatever it answers.
    """
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return None
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as server:
            server.settimeout(CONNECT_SECONDS)
            server.sendall(_HTTP2_GREETING)
            answer = server.recv(9)
    except (OSError, ValueError) as error:
        return f"it does not answer: {error}"
    if answer[3:4] == _HTTP2_SETTINGS:
        return None
    is_web = answer.startswith(b"HTTP/")
    return f"a {'web server, such as the dashboard,' if is_web else 'program that is no Ray'} listens there"


def _has_token() -> bool:
    """Whether Ray finds a token: in the environment, in the file named there, or in that of the user."""
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(file).expanduser().is_file()


def living_nodes() -> dict[str, str]:
    """Names of the cluster's nodes, by Ray's ids; a node that comes back has another id."""
    import ray  # noqa: PLC0415

    return {node["NodeID"]: node_name(node) for node in ray.nodes() if node["Alive"]}


def node_name(node: Mapping[str, Any]) -> str:
    """How messages call a node that `ray.nodes` lists."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _check_workers() -> None:
    """Make sure that every node of Ray can start a worker, for which everything else would wait without end.

    Raises:
        CatalogError: One cannot; with the end of the worker's log where that is on this machine.
    """
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    @ray.remote(num_cpus=0, max_retries=0)
    def start() -> None:
        return

    # A node that is lost meanwhile is none of those that matter: its task goes to another one.
    tasks = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        tasks[start.options(scheduling_strategy=there).remote()] = node
    started, silent = ray.wait(list(tasks), num_returns=len(tasks), timeout=START_SECONDS)
    if silent:
        raise CatalogError(why_silent({tasks[silent[0]]["NodeID"]}, START_SECONDS))
    try:
        ray.get(started)
    except ray.exceptions.RayError as error:
        raise CatalogError(f"workers of Ray do not start: {describe_failure(error)}") from error


def why_silent(nodes: Set[str], seconds: float) -> str:
    """One line on workers that do not start, with the end of a worker's log where that is on this machine.

    Args:
        nodes: Ids of those on which they were to start.
        seconds: How long they were waited for.
    """
    import ray  # noqa: PLC0415

    names = sorted(node_name(node) for node in ray.nodes() if node["NodeID"] in nodes)
    logs, is_here = _logs_folder(), nodes == {ray.get_runtime_context().get_node_id()}
    return (
        f"no worker of Ray has started within {seconds:.0f} s on node {name_first(names)}; "
        f"{_last_words(logs) if is_here else f'its logs are in {logs} there'}"
    )


def _logs_folder() -> Path:
    import ray  # noqa: PLC0415

    node: Any = ray._private.worker._global_node
    return Path(node.get_logs_dir_path())


def _last_words(logs: Path) -> str:
    """The end of the log that says most likely why workers do not start."""
    for kind in ("worker-*.err", "worker-*.out", "runtime_env_setup-*.log", "raylet.err", "raylet.out"):
        files = [file for file in logs.glob(kind) if file.stat().st_size]
        if files:
            newest = max(files, key=lambda file: file.stat().st_mtime)
            lines = newest.read_text(encoding="utf-8", errors="replace").split("\n")
            end = " | ".join(line.strip() for line in lines if line.strip())[-200:]
            return f"{newest} ends with: {end}"
    return f"its logs are in {logs}"


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Ray's processes, which are started meanwhile, have the environment of workers; this process has not."""
    own = {name: os.environ.get(name) for name in WORKER_VARIABLES}
    os.environ.update(WORKER_VARIABLES)
    try:
        yield
    finally:
        for name, value in own.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
