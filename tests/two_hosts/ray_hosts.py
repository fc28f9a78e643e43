"""A Ray cluster of two machines with disks of their own and one CPU each, and an object store for both."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cluster.processes import find_free_port
from tests.host_network import HostNetwork
from tests.two_hosts.machine import Machine, kill
from tests.two_hosts.object_store import ObjectStore

ROOT = Path(__file__).parents[2]
ADDRESSES = {"first": "127.0.0.2", "second": "127.0.0.3", "third": "127.0.0.4"}
"""Of the machines where they share the network of this one."""
NETWORK_ADDRESSES = {"first": "10.78.0.1", "second": "10.78.0.2", "third": "10.78.0.3", "store": "10.78.0.4"}
"""Of the machines and the object store where they have a network of their own."""
STARTS_WITHIN_SECONDS = 90.0
COMMAND_SECONDS = 300.0
POLL_SECONDS = 0.1
_OWN_VARIABLES = ("AWS_", "DATA_CATALOG_", "MLFLOW_", "RAY_", "STMI_", "XDG_")
"""Start of the names of variables that change what is tested; those of the user are not passed on."""
_SECRETS = ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY")
_OBJECT_STORE_BYTES = 100_000_000


Found = TypeVar("Found")


class RayHosts:
    """The cluster. Its nodes have the code and what lies beside the disks in common, nothing else.

    Args:
        folder: Where the logs of the nodes go.
        variables: Environment of nodes and commands besides that of this process.
        network: The machines' own, with `NETWORK_ADDRESSES`; None for loopback.

    Attributes:
        first: The machine with Ray's head.
        second: The other machine.
        store: The object store.
        environment: The environment of both nodes and of commands, without HOME and TMPDIR.
    """

    def __init__(
        self, folder: Path, variables: Mapping[str, str] = {}, network: HostNetwork | None = None
    ) -> None:
        self.folder = folder
        self.network = network
        self.store = ObjectStore(network.listen("store") if network else None)
        # Its path is short, because Ray's sockets lie below it.
        self.disk = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
        self._hosts_file = folder / "hosts"
        self._addresses = network.addresses if network else ADDRESSES
        lines = [f"{address} {name}" for name, address in self._addresses.items()]
        self._hosts_file.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        port = find_free_port()
        client_port = find_free_port(taken=[port])
        self._address = f"{self._addresses['first']}:{port}"
        self._head_options = (
            *("--head", f"--port={port}", "--include-dashboard=false"),
            f"--ray-client-server-port={client_port}",
        )
        python = Path(sys.executable).parent
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_OWN_VARIABLES)},
            **self.store.environment,
            "PATH": f"{python}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_ADDRESS": self._address,
            "RAY_AUTH_MODE": "token",
            **{name: secrets.token_hex(32) for name in _SECRETS},
            "STMI_WORKSPACE": str(self.disk / "runs"),
            **variables,
        }
        self._machines: dict[str, Machine] = {}
        self._nodes: dict[str, subprocess.Popen[str]] = {}
        self.first = self.boot("first")
        self.second = self.boot("second")

    def start(self) -> None:
        """Start both nodes."""
        self.start_node(self.first)
        self.start_node(self.second)

    def boot(self, name: str) -> Machine:
        """Start a machine, with an empty disk and without Ray.

        Args:
            name: One of `ADDRESSES`.
        """
        network = self.network.command(name) if self.network else ()
        machine = Machine(name, self._addresses[name], self.disk, self._hosts_file, network)
        self._machines[name] = machine
        return machine

    def start_node(self, machine: Machine, cpus: int = 1) -> None:
        """Start Ray on a machine; it joins the cluster, or on the first machine begins it."""
        log = self._log(machine)
        log.unlink(missing_ok=True)
        self._nodes[machine.name] = process = machine.start(
            *("ray", "start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}"),
            *(self._head_options if machine is self.first else (f"--address={self._address}",)),
            f"--node-ip-address={machine.address}",
            f"--temp-dir={self.disk / 'ray'}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
            environment={name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"},
            output=log,
        )
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def kill_raylet(self, machine: Machine) -> None:
        """End Ray's node on a machine with SIGKILL; the disk stays."""
        os.kill(machine.find_process("raylet"), signal.SIGKILL)
        self.wait_for_end(machine)

    def wait_for_end(self, machine: Machine) -> None:
        """Wait until Ray's node on a machine has ended, as one does that the cluster has given up."""
        self._nodes[machine.name].wait(timeout=60)

    def recover(self) -> None:
        """Bring the cluster back to two nodes on empty disks, after whatever the last test did."""
        for name in [name for name in self._machines if name not in ("first", "second")]:
            self._machines.pop(name).end()
        for machine in (self.first, self.second):
            machine.wipe()
            if self._nodes[machine.name].poll() is not None:
                self.start_node(machine)

    def spawn(self, machine: Machine, script: str, *options: str, **variables: str) -> subprocess.Popen[str]:
        """Start a script of `experiments/` on a machine."""
        path = str(ROOT / "experiments" / script)
        return machine.start("python", path, *options, environment=self.environment | variables)

    def run(
        self, machine: Machine, script: str, *options: str, timeout: float = COMMAND_SECONDS, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of `experiments/` on a machine to its end."""
        process = self.spawn(machine, script, *options, **variables)
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            kill(process)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def result(self, machine: Machine, script: str, *options: str, **variables: str) -> dict[str, Any]:
        """The JSON document that a successful script prints."""
        ended = self.run(machine, script, *options, "--json", **variables)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def wait(self, process: subprocess.Popen[str], find: Callable[[], Found]) -> Found:
        """What a function finds once it does, that a script is to do; fails if the script ends before."""
        deadline = time.monotonic() + COMMAND_SECONDS
        while not (found := find()):
            if process.poll() is not None or time.monotonic() > deadline:
                kill(process)
                raise AssertionError(f"this did not come: {process.communicate()[1]}")
            # Reading all journals takes the processor that a host needs.
            time.sleep(POLL_SECONDS)
        return found

    def actors(self) -> dict[str, Counter[str]]:
        """How often each kind of Ray actor was started, by machine: what Ray's logs on its own disk say."""
        return {machine.name: _started_actors(machine) for machine in (self.first, self.second)}

    def leaks(self) -> list[str]:
        """What holds a secret of the environment: files of both disks, objects, and command lines."""
        secret = [self.environment[name].encode() for name in (*_SECRETS, "AWS_SECRET_ACCESS_KEY")]
        disks = [machine.path() for machine in (self.first, self.second)]
        found = {path: path.read_bytes() for disk in disks for path in disk.rglob("*") if path.is_file()}
        found |= {Path(name): self.store.read(name) for name in self.store.names("")}
        found |= {
            path: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.is_dir()
        }
        return [str(path) for path, content in found.items() if any(one in content for one in secret)]

    def close(self) -> None:
        """End the cluster; its logs stay in the folder."""
        for machine in self._machines.values():
            for session in machine.path("ray").glob("session_2*"):
                shutil.copytree(session / "logs", self.folder / "logs" / machine.name / session.name)
            machine.end()
        for process in self._nodes.values():
            kill(process)
        self.store.close()
        self.disk.rmdir()

    def _log(self, machine: Machine) -> Path:
        return self.folder / f"{machine.name}.log"


def _started_actors(machine: Machine) -> Counter[str]:
    logs = machine.path("ray").glob("session_2*/logs/worker-*.out")
    return Counter(name for log in logs for name in re.findall(r"^:actor_name:(\w+)", log.read_text(), re.M))
