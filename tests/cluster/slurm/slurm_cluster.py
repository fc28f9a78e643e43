"""A real Slurm of two hosts on one machine: Debian's daemons in network namespaces.

Each host has a `/tmp` of its own; all other files are shared, as on a parallel file system.
"""

import functools
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests import host_network
from tests.host_network import HostNetwork

HOSTS = {"h1": "10.77.0.1", "h2": "10.77.0.2"}
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv")
SLURM_CONF = """
ClusterName=test
SlurmctldHost=h1(10.77.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmUser=root
SlurmdUser=root
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SchedulerParameters=sched_interval=2
KillWait=5
MinJobAge=3600
UnkillableStepTimeout=10
NodeName=h1 NodeAddr=10.77.0.1 CPUs=2 RealMemory=4000
NodeName=h2 NodeAddr=10.77.0.2 CPUs=2 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


@functools.cache
def missing_requirement() -> str | None:
    """Why Slurm cannot be started here; None where it can be."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} is not installed (Debian: slurmctld slurmd slurm-client munge)"
    return host_network.missing_requirement()


class SlurmCluster:
    """Slurm on two hosts.

    Args:
        folder: An empty folder outside of `/tmp`, which each host has for itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._network = HostNetwork(HOSTS)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._daemons: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "SLURM_", "STMI_", "MLFLOW_"))
        } | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons, and wait until both hosts take jobs."""
        self._network.start()
        self._start_munge()
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(folder=self.folder))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in HOSTS.items())
        )
        (self.folder / "state").mkdir()
        for name in HOSTS:
            (self.folder / f"spool-{name}").mkdir()
        self._spawn("h1", "slurmctld", "-D")
        for name in HOSTS:
            self._spawn(name, "slurmd", "-D", "-N", name)
        end = time.monotonic() + 60
        while self.run("sinfo", "--noheader", "--format=%n %T").split() != ["h1", "idle", "h2", "idle"]:
            assert time.monotonic() < end, self.logs()
            time.sleep(0.5)

    def run(self, *command: str) -> str:
        """What a command prints that a user calls on the first host."""
        done = subprocess.run(
            self._network.command("h1", *command),
            env=self.environment, capture_output=True, text=True, check=False, timeout=60, cwd=self.folder,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}"

    def state(self, job: str) -> str:
        """State of a job, as `RUNNING`; empty once Slurm has forgotten it."""
        found = dict(
            part.split("=", 1) for part in self.run("scontrol", "show", "job", job).split() if "=" in part
        )
        return found.get("JobState", "")

    def wait(self, job: str, *states: str, seconds: float) -> str:
        """Wait until a job is in one of these states; returns it."""
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end, f"job {job} is {state}\n{self.logs()}"
            time.sleep(0.5)
        return state

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.logs()
            time.sleep(0.5)
        return True

    def processes(self, text: str) -> dict[str, int]:
        """How many processes of each host have a text in their command line."""
        found = dict.fromkeys(HOSTS, 0)
        for host in HOSTS:
            for number in self._network.processes(host):
                try:
                    found[host] += text in Path(f"/proc/{number}/cmdline").read_text()
                except OSError:
                    continue  # it has ended meanwhile
        return found

    def files(self, host: str, pattern: str) -> list[str]:
        """What a host has in its own `/tmp`, by a pattern of the shell."""
        (daemon,) = [process for name, process in self._daemons if name == host][-1:]
        root = Path(f"/proc/{daemon.pid}/root")
        return [str(path) for path in root.glob(pattern.lstrip("/"))]

    def logs(self) -> str:
        """The ends of all logs, for the message of a failed test."""
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def end(self) -> None:
        """End everything that was started."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # With what a daemon left behind.
        self._network.end()

    def _start_munge(self) -> None:
        place = self.folder / "munge"
        place.mkdir(mode=0o755)
        key = place / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        for path in (place, key):
            shutil.chown(path, "munge", "munge")
        options = [f"--{name}={place / name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        command = [
            "setpriv",
            "--reuid=munge",
            "--regid=munge",
            "--clear-groups",
            "munged",
            "--foreground",
            "--force",
        ]
        self._processes.append(subprocess.Popen([*command, f"--key-file={key}", *options]))

    def _spawn(self, host: str, *command: str) -> None:
        """Start a daemon on a host, whose `/tmp` and names of hosts are its own."""
        own = f"mount -t tmpfs none /tmp; mount --bind {self.folder}/hosts /etc/hosts"
        script = f'hostname {host}; {own}; exec "$@"'
        space = self._network.command(host, "unshare", "--uts", "--mount")
        with (self.folder / f"{command[0]}-{host}.out").open("ab") as output:
            daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *space, "sh", "-ec", script, "sh", *command],
                env=self.environment, stdout=output, stderr=output, cwd=self.folder,
            )  # fmt: skip
        self._processes.append(daemon)
        self._daemons.append((host, daemon))
