"""Processes that outlive the shell, and how to know them again.

A process number alone proves nothing: the system gives it to another process once the first has ended. So a
process is remembered by its number and by when it was born, counted from the start of the machine. (The
time of day would not do: a clock that is set right moves the birth of every process.)
"""

import contextlib
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

Mark = tuple[int, float]
"""A process: its number, and its birth in seconds after the start of the machine."""

_SAME_BIRTH_SECONDS = 2.0
"""The start of the machine is only known to the second."""
_KILL_SECONDS = 5.0


def start(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path
) -> subprocess.Popen[bytes]:
    """A process that the end of this one, or of its terminal, does not touch.

    Args:
        command: Program and arguments.
        environment: All of its environment.
        log: Where its output is appended to.
        folder: Its working folder.
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


def mark(process: psutil.Process) -> Mark:
    """What to remember a process by.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    return process.pid, round(process.create_time() - psutil.boot_time(), 2)


def find(remembered: Mark) -> psutil.Process | None:
    """The process that is remembered, or None where it has ended, also where another has its number now."""
    number, birth = remembered
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(number)
        if abs(mark(process)[1] - birth) < _SAME_BIRTH_SECONDS and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def family(remembered: Iterable[Mark]) -> list[psutil.Process]:
    """The remembered processes that live, and all that descend from them; older ones first."""
    found: dict[int, psutil.Process] = {}
    for each in remembered:
        process = find(each)
        if process is not None:
            found[process.pid] = process
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {child.pid: child for child in process.children(recursive=True)}
    return [process for process in found.values() if process.is_running()]


def marks(processes: Iterable[psutil.Process]) -> list[Mark]:
    """What to remember those of the processes by that live."""
    result = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            result.append(mark(process))
    return result


def end(remembered: Sequence[Mark], patience_seconds: float) -> int:
    """End processes and all that descend from them; gives how many there were.

    The first one is asked, and ends its own; whoever still lives after the patience is killed.

    Args:
        remembered: The first is the one that started the others.
        patience_seconds: Time to end in good order.
    """
    members = family(remembered)
    if not members:
        return 0
    first = find(remembered[0])
    for process in [first] if first is not None else members:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(members, timeout=patience_seconds)
    # Some may have been born while the others ended.
    leftover = family([*remembered, *marks(alive)])
    for process in leftover:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(leftover, timeout=_KILL_SECONDS)
    return len({process.pid for process in (*members, *leftover)})


def is_free(port: int) -> bool:
    """Whether nothing listens on a TCP port of this machine."""
    with socket.socket() as probe:
        # As servers do: a port whose connections were closed just now is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def free_port(*wanted: int | None, taken: Iterable[int] = ()) -> int:
    """The first of the wanted ports that is free, else any free one.

    Args:
        wanted: Ports; None is passed over.
        taken: Ports that are promised to others.
    """
    refused = set(taken)
    for port in wanted:
        if port is not None and port not in refused and is_free(port):
            return port
    while True:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        if port not in refused:
            return port


def last_lines(log: Path, count: int = 20) -> str:
    """The end of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"  | {line}" for line in lines[-count:])
