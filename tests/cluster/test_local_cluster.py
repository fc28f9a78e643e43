"""What a local cluster does when things go wrong, with small processes instead of Ray and MLflow."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from cluster.cluster_state import ClusterError
from cluster.cluster_status import StartedCluster
from cluster.local_cluster import LocalCluster, make_private_folder
from cluster.processes import end_processes, find_family, find_free_port, process_keys, start_process
from cluster.services import USUAL_PORTS, ClusterSettings, Service, answers
from experiments.tracking.mlflow_store import local_store

SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
FAILS = "import sys; print('no room on the disk'); sys.exit(3)"
SLEEPS = "import time; time.sleep(60)"


class StandIns:
    """Clusters whose services are small programs; a test may change their `code`."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        # Not those of real clusters, which other tests and programs of this machine may start.
        self.ports = {name: {role: find_free_port() for role in roles} for name, roles in USUAL_PORTS.items()}
        self.code = {"ray": SERVER, "mlflow": SERVER}
        self.before_start: Callable[[str, int], None] = lambda name, port: None

    def cluster(self, timeout_seconds: float = 20) -> LocalCluster:
        makers = {"ray": lambda s: self._service(s, "ray", "dashboard")}
        makers["mlflow"] = lambda s: self._service(s, "mlflow", "http")
        return LocalCluster(self.workspace, timeout_seconds, makers, self.ports)

    def _service(self, settings: ClusterSettings, name: str, role: str) -> Service:
        port = settings.ports[name][role]
        self.before_start(name, port)
        command = (sys.executable, "-c", self.code[name], str(port))
        return Service(command, dict(os.environ), port, lambda: answers(f"http://127.0.0.1:{port}/", {}))


@pytest.fixture
def stand_ins(tmp_path):
    programs = StandIns(tmp_path)
    yield programs
    programs.cluster().down()


def started(cluster: LocalCluster, uri: str | None = None) -> StartedCluster:
    status = cluster.up(uri)
    assert isinstance(status, StartedCluster)
    return status


def first_process(status: StartedCluster, name: str) -> psutil.Process:
    return psutil.Process(status.services[name].process)


def test_service_that_ends_at_once_is_reported_with_its_log(stand_ins):
    stand_ins.code["mlflow"] = FAILS
    with pytest.raises(ClusterError, match=r"(?s)mlflow ended with status 3.*\| no room on the disk"):
        stand_ins.cluster().up()
    status = stand_ins.cluster().status()
    assert [service.state for service in status.services.values()] == ["well", "died"]


def test_service_that_never_answers_is_ended_after_the_timeout(stand_ins):
    stand_ins.code["mlflow"] = SLEEPS
    cluster = stand_ins.cluster(timeout_seconds=1)
    with pytest.raises(ClusterError, match="mlflow did not answer within 1 s"):
        cluster.up()
    assert cluster.status().services["mlflow"].state == "died"
    assert cluster.down().ended == {"ray": 1, "mlflow": 0}


def test_process_with_the_number_of_an_ended_one_is_left_alone(stand_ins, tmp_path):
    stand_ins.cluster().up()
    bystander = subprocess.Popen([sys.executable, "-c", SLEEPS])
    try:
        file = tmp_path / "cluster" / "state.json"
        state = json.loads(file.read_text())
        (key,) = state["processes"]["mlflow"]
        # As if MLflow had ended, and the system had given its number to another process since.
        state["processes"]["mlflow"] = [[bystander.pid, key[1] - 1000]]
        file.write_text(json.dumps(state))
        other = stand_ins.cluster()
        assert other.status().services["mlflow"].state == "died"
        assert other.down().ended == {"ray": 1, "mlflow": 0}
        assert bystander.poll() is None
    finally:
        end_processes([tuple(key)], 5)
        bystander.kill()
        bystander.wait()


def test_port_of_another_program_is_not_used(stand_ins):
    with socket.socket() as program:
        program.bind(("127.0.0.1", 0))
        program.listen()
        port = program.getsockname()[1]
        stand_ins.ports["mlflow"] = {"http": port}
        assert started(stand_ins.cluster()).mlflow != f"http://127.0.0.1:{port}"


def test_answer_at_a_port_that_another_program_took_meanwhile_is_not_that_of_the_service(stand_ins):
    others = []

    def take(name, port):
        if name == "ray" and not others:
            others.append(subprocess.Popen([sys.executable, "-c", SERVER, str(port)]))
            while not answers(f"http://127.0.0.1:{port}/", {}):
                time.sleep(0.05)

    stand_ins.before_start = take
    try:
        with pytest.raises(ClusterError, match=r"ray could not have port \d+, where another program answers"):
            stand_ins.cluster().up()
        assert stand_ins.cluster().status().services["ray"].state == "died"
        assert started(stand_ins.cluster()).state == "up"
        assert others[0].poll() is None
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_mlflow_is_not_moved_away_from_the_jobs_when_its_port_is_taken(stand_ins):
    status = started(stand_ins.cluster())
    victim = first_process(status, "mlflow")
    victim.kill()
    psutil.wait_procs([victim], 5)
    with socket.socket() as program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        program.bind(("127.0.0.1", int(status.mlflow.rpartition(":")[2])))
        program.listen()
        with pytest.raises(ClusterError, match="is taken by another program"):
            stand_ins.cluster().up()
    assert started(stand_ins.cluster()).mlflow == status.mlflow


def test_password_of_the_database_is_neither_kept_nor_shown(stand_ins, tmp_path):
    uri = "postgresql://me:geheim@db.example/mlflow"
    status = started(stand_ins.cluster(), uri)
    assert status.backend == "postgresql://db.example/mlflow"
    kept = [path.read_text(errors="replace") for path in (tmp_path / "cluster").glob("*") if path.is_file()]
    assert not any("geheim" in text for text in (*kept, status.to_json()))
    assert stand_ins.cluster().up() == status
    with pytest.raises(ClusterError, match=r"runs on postgresql://db\.example/mlflow"):
        stand_ins.cluster().up("sqlite:////elsewhere.db")
    first_process(status, "mlflow").kill()
    time.sleep(0.2)
    with pytest.raises(ClusterError, match="whose password is not kept: give --backend-store-uri"):
        stand_ins.cluster().up()
    assert started(stand_ins.cluster(), uri).mlflow == status.mlflow


def test_mlflow_serves_the_database_of_runs_without_a_cluster(stand_ins, tmp_path):
    status = started(stand_ins.cluster())
    assert (status.backend, status.earlier_backend) == (local_store(tmp_path), None)


def test_database_of_an_older_version_is_named_and_can_be_served(stand_ins, tmp_path):
    file = tmp_path / "cluster" / "mlflow.db"
    file.parent.mkdir()
    file.write_bytes(b"")
    earlier = f"sqlite:///{file}"
    status = started(stand_ins.cluster())
    assert (status.backend, status.earlier_backend) == (local_store(tmp_path), earlier)
    stand_ins.cluster().down()
    status = started(stand_ins.cluster(), earlier)
    assert (status.backend, status.earlier_backend) == (earlier, None)
    # It asks for no password, so a server that died is started again on it.
    first_process(status, "mlflow").kill()
    time.sleep(0.2)
    assert started(stand_ins.cluster()).backend == earlier
    assert file.exists()


def test_damaged_state_or_state_of_another_machine_is_refused(tmp_path):
    file = tmp_path / "cluster" / "state.json"
    file.parent.mkdir()
    for text, message in (
        ('{"host": "elsewhere", "ports": {}, "backend": "", "processes": {}}', "host=elsewhere, but this is"),
        ("[]", "is not a state that this command wrote"),
        ("{", "is not a state that this command wrote"),
        ('{"host": "elsewhere"}', "is not a state that this command wrote"),
    ):
        file.write_text(text)
        cluster = LocalCluster(tmp_path)
        for command in (cluster.up, cluster.status, cluster.down):
            with pytest.raises(ClusterError, match=message):
                command()


def test_second_command_at_the_same_time_is_refused(tmp_path):
    cluster = LocalCluster(tmp_path)
    cluster.folder.mkdir()
    with FileLock(cluster.folder / ".lock"), pytest.raises(ClusterError, match="another command works on"):
        cluster.up()


def test_folder_that_others_can_open_is_not_trusted(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ClusterError, match="nobody else can open"):
        make_private_folder(folder)
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    Path(tmp_path / "link").symlink_to(target)
    with pytest.raises(ClusterError, match="nobody else can open"):
        make_private_folder(tmp_path / "link")


def test_process_that_ignores_sigterm_is_killed_with_its_descendants(tmp_path):
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]); print('ready', flush=True); time.sleep(60)"
    )
    child = start_process([sys.executable, "-c", code], os.environ, tmp_path / "log", tmp_path)
    while "ready" not in (tmp_path / "log").read_text():
        time.sleep(0.02)
    keys = process_keys([psutil.Process(child.pid)])
    family = find_family(keys)
    assert len(family) == 2
    assert os.getsid(child.pid) == child.pid
    assert end_processes(keys, timeout_seconds=0.5) == 2
    assert find_family(process_keys(family)) == []
    child.wait()
