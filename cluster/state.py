"""What a place to submit to remembers of its services, in one file."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cluster import processes


class ClusterError(RuntimeError):
    """A place that cannot be started, looked at or ended; says why and what to do."""


class State:
    """Ports and processes of each service, and MLflow's database.

    It is written as soon as a process runs, so whatever happens next, it says what there is to end.

    Args:
        folder: Where the file is.

    Attributes:
        ports: Of each service, by role; empty where nothing was started.
        backend: MLflow's database, without its password; empty where nothing was started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports: dict[str, dict[str, int]] = {}
        self.backend = ""
        self._processes: dict[str, list[processes.Mark]] = {}
        self._file = folder / "state.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands on this place away, and read the state.

        Raises:
            ClusterError: Another command is at it, or the state cannot be read.
        """
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                self.read()
                yield
        except Timeout:
            raise ClusterError(
                f"another command works on {self.folder} at this moment; wait until it has finished"
            ) from None

    def read(self) -> None:
        """Read the state, if there is one.

        Raises:
            ClusterError: It is damaged, or belongs to another machine.
        """
        if not self._file.exists():
            return
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            host = stored["host"]
            self.ports, self.backend = stored["ports"], stored["backend"]
            self._processes = {
                name: [(int(number), float(birth)) for number, birth in marks]
                for name, marks in stored["processes"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ClusterError(
                f"{self._file} is not a state that this command wrote; see whether Ray and MLflow still run, "
                "end them yourself, and delete the file"
            ) from None
        if host != socket.gethostname():
            raise ClusterError(
                f"{self._file}: host={host}, but this is {socket.gethostname()}; run the command there, or "
                "delete the file if that machine is gone, or choose another --workspace"
            )

    def marks(self, name: str) -> list[processes.Mark]:
        """The processes of a service as they were last seen, the one that started the others first."""
        return self._processes.get(name, [])

    def is_alive(self, name: str) -> bool:
        """Whether the first process of a service lives."""
        marks = self.marks(name)
        return bool(marks) and processes.find(marks[0]) is not None

    def began(self, name: str, process: processes.Mark) -> None:
        """Note the first process of a service."""
        self._processes[name] = [process]
        self._write()

    def look(self, name: str) -> None:
        """Note the processes that a service has now: when the first one crashes, the others may stay."""
        first = self.marks(name)[0]
        now = processes.marks(processes.family(self.marks(name)))
        self._processes[name] = [first, *(each for each in now if each[0] != first[0])]
        self._write()

    def forget(self) -> None:
        """Remove the state."""
        self._file.unlink(missing_ok=True)
        self.ports, self.backend, self._processes = {}, "", {}

    def _write(self) -> None:
        stored: dict[str, Any] = {
            "host": socket.gethostname(),
            "backend": self.backend,
            "ports": self.ports,
            "processes": self._processes,
        }
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._file)
