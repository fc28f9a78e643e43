"""Processes that outlive the shell, and how to recognise them later.

The system reuses process numbers, so a process is identified by its number and its start time. That is
counted from the boot of the machine: a correction of the clock shifts the time of day of every start.
"""

import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ProcessKey = tuple[int, float]
"""A process: its number, and its start in seconds after the boot of the machine."""

_START_TOLERANCE_SECONDS = 2.0
"""The time of the boot is known to the second only."""
_KILL_SECONDS = 5.0


def start_process(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path
) -> subprocess.Popen[bytes]:
    """Start a process that survives the end of this one and of its terminal.

    Args:
        command: Program and arguments.
        environment: All of its environment.
        log: File to which its output is appended.
        folder: Its working directory.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def process_key(process: psutil.Process) -> ProcessKey:
    """The key by which a process is recognised later.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    return process.pid, round(process.create_time() - psutil.boot_time(), 2)


def process_keys(processes: Iterable[psutil.Process]) -> list[ProcessKey]:
    """The keys of those processes that still run."""
    keys = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            keys.append(process_key(process))
    return keys


def find_process(key: ProcessKey) -> psutil.Process | None:
    """The process with this key; None where it has ended, also where another process has its number now."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(key[0])
        same = abs(process_key(process)[1] - key[1]) < _START_TOLERANCE_SECONDS
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def find_family(keys: Iterable[ProcessKey]) -> list[psutil.Process]:
    """The processes with these keys that still run, and all their descendants."""
    family: dict[int, psutil.Process] = {}
    for process in filter(None, map(find_process, keys)):
        family[process.pid] = process
        with suppress(psutil.NoSuchProcess):
            family |= {child.pid: child for child in process.children(recursive=True)}
    return [process for process in family.values() if process.is_running()]


def end_processes(keys: Sequence[ProcessKey], timeout_seconds: float) -> int:
    """End processes and all their descendants; returns how many there were.

    The first process gets SIGTERM and ends its children itself; what still runs after the timeout is killed.

    Args:
        keys: The first one is of the process that started the others.
        timeout_seconds: Time to end in good order.
    """
    family = find_family(keys)
    if not family:
        return 0
    first = find_process(keys[0])
    for process in [first] if first is not None else family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=timeout_seconds)
    # Some may have started while the others ended.
    leftover = find_family([*keys, *process_keys(alive)])
    for process in leftover:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(leftover, timeout=_KILL_SECONDS)
    return len({process.pid for process in (*family, *leftover)})


def listen(processes: Iterable[psutil.Process], port: int) -> bool:
    """Whether one of these processes of this user listens on a TCP port."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return True
    return False


def find_free_port(*wanted: int | None, taken: Iterable[int] = ()) -> int:
    """The first of the wanted ports on which nothing listens, otherwise any free port.

    Args:
        wanted: Ports; None is skipped.
        taken: Ports that are promised to others.
    """
    refused = set(taken)
    for port in wanted:
        if port is not None and port not in refused and _bind(port) is not None:
            return port
    while True:
        found = _bind(0)
        if found is not None and found not in refused:
            return found


def _bind(port: int) -> int | None:
    """Bind a TCP port for a moment, 0 for any; returns its number, None where a program listens on it."""
    with socket.socket() as probe:
        # As servers do: a port whose connections were closed just now is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def last_lines(log: Path) -> str:
    """The last 20 lines of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"  | {line}" for line in lines[-20:])
