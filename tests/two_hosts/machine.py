"""A machine of its own as far as files, processes and host name go; its network may be any of this machine.

It is a process in namespaces of its own, with an empty disk in memory. It can read all other files of this
machine, such as the code and the installed packages, and write none of them. The kernel ends all its
processes and frees its disk when that process or the tests end, however that happens.
"""

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_NAMESPACES = ("--mount", "--pid", "--uts")
_BOOT = """
hostname "$1"
mount --bind "$2" /etc/hosts
mount -t tmpfs none /dev/shm
mount -t tmpfs none "$3"
mount -o remount,bind,ro /
mkdir "$3/home" "$3/tmp" "$3/ray"
echo booted
sleep infinity & wait
"""
"""What the first process of a machine does; at the end it collects ended processes that have no parent."""


@functools.cache
def missing_requirement() -> str | None:
    """Why there can be no such machines here; None where there can be."""
    for program in ("unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            return f"the program {program} (util-linux) is missing"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "mount", "-t", "tmpfs", "none", "/tmp"],
        check=False,
        capture_output=True,
        text=True,
    )
    return f"no namespaces of our own without root: {tried.stderr.strip()}" if tried.returncode else None


class Machine:
    """A machine with an empty disk.

    Args:
        name: Its host name.
        address: Its IP address.
        disk: An empty folder; what processes of this machine see there is its own disk.
        hosts_file: Names of all machines and their addresses.
        network: What runs a command on its network; empty for the network of this process.
    """

    def __init__(
        self, name: str, address: str, disk: Path, hosts_file: Path, network: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.address = address
        self.disk = disk
        # Without this process, the kernel ends `unshare`, and with it everything on the machine.
        self._holder = subprocess.Popen(
            [
                *(*network, "setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, "--mount-proc"),
                *("--fork", "--kill-child=SIGKILL", "sh", "-ec", _BOOT, "sh"),
                *(name, str(hosts_file), str(disk)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "booted\n", f"{name} did not start"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._first_process = int(children.read_text())
        self._entered = ("nsenter", f"--target={self._first_process}", "--net", *_NAMESPACES)

    def start(
        self, *command: str, environment: Mapping[str, str], output: Path | int | None = None
    ) -> subprocess.Popen[str]:
        """Start a program on this machine; its working directory is the disk.

        Args:
            command: Program and arguments.
            environment: All of its environment, without HOME and TMPDIR, which are on the disk.
            output: File that its output is added to; None to read both streams through pipes.
        """
        own = {"HOME": str(self.disk / "home"), "TMPDIR": str(self.disk / "tmp")}
        stream = subprocess.PIPE if output is None else output.open("a")
        return subprocess.Popen(
            [*self._entered, "env", f"--chdir={self.disk}", *command],
            env=dict(environment) | own,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            text=True,
            # Enough for programs whose output is read at their end.
            pipesize=2**20,
            # What it starts is in its process group, so that `kill` ends all of it.
            start_new_session=True,
        )

    def path(self, *parts: str) -> Path:
        """The path by which this process reaches a file on the machine's disk."""
        return Path(f"/proc/{self._first_process}/root{self.disk}", *parts)

    def files(self, folder: str = "") -> list[str]:
        """The files below a folder of the disk, without those of Ray and of the system; sorted."""
        root = self.path()
        below = (path.relative_to(root) for path in self.path(folder).rglob("*") if path.is_file())
        return sorted(str(path) for path in below if path.parts[0] not in ("ray", "tmp"))

    def remove(self, folder: str) -> None:
        """Remove a folder from the disk."""
        shutil.rmtree(self.path(folder))

    def wipe(self) -> None:
        """Empty the disk, except for the files of the Ray node."""
        for path in self.path().iterdir():
            if path.name == "ray":
                continue
            for below in (path,) if path.name not in ("home", "tmp") else path.iterdir():
                shutil.rmtree(below) if below.is_dir() else below.unlink()

    def mount(self, folder: Path, where: str) -> None:
        """Show a folder of the tests at a path on the disk, as a shared file system is mounted."""
        self.path(where).mkdir()
        target = str(self.disk / where)
        subprocess.run([*self._entered, "mount", "--bind", str(folder), target], check=True)
        # It begins as read-only as all other files.
        subprocess.run([*self._entered, "mount", "-o", "remount,bind,rw", target], check=True)

    def unmount(self, where: str) -> None:
        """Undo `mount`."""
        subprocess.run([*self._entered, "umount", str(self.disk / where)], check=True)
        self.path(where).rmdir()

    def find_process(self, name: str) -> int:
        """The number, as seen from the tests, of the only process of this machine with this name."""
        found = []
        for number in self._processes():
            with suppress(OSError):  # it has ended meanwhile
                if Path(f"/proc/{number}/comm").read_text().strip() == name:
                    found.append(number)
        (process,) = found
        return process

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop everything on this machine while the block runs; its connections stay, and are silent."""
        stopped: set[int] = set()
        try:
            # A process may start another one before it is stopped.
            while started := self._processes() - stopped:
                _send(signal.SIGSTOP, started)
                stopped |= started
            yield
        finally:
            # `nsenter` stops itself where it finds its program stopped, so it goes on last.
            inside = self._processes("pid")
            _send(signal.SIGCONT, inside)
            _send(signal.SIGCONT, self._processes() - inside)

    def _processes(self, namespace: str = "pid_for_children") -> set[int]:
        """Numbers of the processes of this machine, and of those that wait for one of them here.

        Args:
            namespace: `pid` for those of this machine alone.
        """
        own = Path(f"/proc/{self._first_process}/ns/pid").readlink()
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if (folder / "ns" / namespace).readlink() == own:
                    found.add(int(folder.name))
        return found

    def end(self) -> None:
        """End everything on this machine at once, as if its power failed."""
        self._holder.kill()
        self._holder.wait()


def kill(process: subprocess.Popen[str]) -> None:
    """End a program of a machine, and what it started there, with SIGKILL."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _send(number: signal.Signals, processes: Iterable[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
