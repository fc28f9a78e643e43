"""What a place does when things go wrong, with small processes in the place of Ray and MLflow."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster import place as place_module
from cluster import processes, services
from cluster.place import Place
from cluster.services import Service
from cluster.state import ClusterError

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


def stand_in(name: str, code: str, port: int) -> Service:
    command = (sys.executable, "-c", code, str(port))
    url = f"http://127.0.0.1:{port}/"
    return Service(name, command, dict(os.environ), lambda: services._answers(url, {}))


@pytest.fixture
def programs(monkeypatch):
    """The code of each stand-in, which a test may change."""
    code = {"ray": SERVER, "mlflow": SERVER}
    monkeypatch.setattr(
        place_module, "ray_head", lambda ports, *rest: stand_in("ray", code["ray"], ports["dashboard"])
    )
    monkeypatch.setattr(
        place_module, "mlflow_server", lambda ports, *rest: stand_in("mlflow", code["mlflow"], ports["http"])
    )
    return code


@pytest.fixture
def place(programs, tmp_path):
    yield Place(tmp_path, timeout_seconds=20)
    Place(tmp_path).down()


def process_of(document: dict, name: str) -> psutil.Process:
    return psutil.Process(document["services"][name]["process"])


def test_service_that_ends_at_once_is_reported_with_its_log(place, programs, tmp_path):
    programs["mlflow"] = FAILS
    with pytest.raises(ClusterError, match=r"(?s)mlflow ended with status 3.*\| no room on the disk"):
        place.up()
    status = Place(tmp_path).status()
    assert [service["state"] for service in status["services"].values()] == ["well", "died"]


def test_service_that_never_answers_is_ended_when_its_time_is_over(place, programs):
    programs["mlflow"] = SLEEPS
    place.timeout_seconds = 1
    with pytest.raises(ClusterError, match="mlflow did not answer within 1 s"):
        place.up()
    assert place.status()["services"]["mlflow"]["state"] == "died"
    assert place.down()["ended"] == {"ray": 1, "mlflow": 0}


def test_process_that_only_has_a_remembered_number_is_left_alone(place, tmp_path):
    place.up()
    bystander = subprocess.Popen([sys.executable, "-c", SLEEPS])
    try:
        file = tmp_path / "cluster" / "state.json"
        state = json.loads(file.read_text())
        (mark,) = state["processes"]["mlflow"]
        # As if MLflow had ended, and the system had given its number to another process since.
        state["processes"]["mlflow"] = [[bystander.pid, mark[1] - 1000]]
        file.write_text(json.dumps(state))
        other = Place(tmp_path)
        assert other.status()["services"]["mlflow"]["state"] == "died"
        assert other.down()["ended"] == {"ray": 1, "mlflow": 0}
        assert bystander.poll() is None
    finally:
        processes.end([tuple(mark)], 5)
        bystander.kill()
        bystander.wait()


def test_other_programs_port_is_not_taken_and_new_ports_are_found(place, tmp_path, monkeypatch):
    with socket.socket() as program:
        program.bind(("127.0.0.1", 0))
        program.listen()
        port = program.getsockname()[1]
        monkeypatch.setitem(place_module.PORTS, "mlflow", {"http": port})
        assert place.up()["mlflow"] != f"http://127.0.0.1:{port}"


def test_mlflow_whose_port_was_taken_is_not_moved_away_from_the_jobs(place, tmp_path):
    document = place.up()
    victim = process_of(document, "mlflow")
    victim.kill()
    psutil.wait_procs([victim], 5)
    with socket.socket() as program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        program.bind(("127.0.0.1", int(document["mlflow"].rpartition(":")[2])))
        program.listen()
        with pytest.raises(ClusterError, match="is taken by another program"):
            Place(tmp_path).up()
    assert Place(tmp_path).up()["mlflow"] == document["mlflow"]


def test_password_of_the_database_is_neither_kept_nor_shown(place, programs, tmp_path):
    uri = "postgresql://me:geheim@db.example/mlflow"
    document = place.up(uri)
    assert document["backend"] == "postgresql://db.example/mlflow"
    kept = [path.read_text(errors="replace") for path in (tmp_path / "cluster").glob("*") if path.is_file()]
    assert not any("geheim" in text for text in (*kept, json.dumps(document)))
    assert Place(tmp_path).up() == document
    with pytest.raises(ClusterError, match=r"runs on postgresql://db\.example/mlflow"):
        Place(tmp_path).up("sqlite:////elsewhere.db")
    process_of(document, "mlflow").kill()
    time.sleep(0.2)
    with pytest.raises(ClusterError, match="whose password is not kept: give --backend-store-uri"):
        Place(tmp_path).up()
    assert Place(tmp_path).up(uri)["mlflow"] == document["mlflow"]


def test_state_of_another_machine_or_none_of_ours_is_refused(tmp_path):
    file = tmp_path / "cluster" / "state.json"
    file.parent.mkdir()
    for text, message in (
        ('{"host": "elsewhere", "ports": {}, "backend": "", "processes": {}}', "host=elsewhere, but this is"),
        ("[]", "is not a state that this command wrote"),
        ("{", "is not a state that this command wrote"),
    ):
        file.write_text(text)
        for command in (Place(tmp_path).up, Place(tmp_path).status, Place(tmp_path).down):
            with pytest.raises(ClusterError, match=message):
                command()


def test_second_command_at_the_same_time_is_refused(place, tmp_path):
    place.folder.mkdir()
    with place.state.locked(), pytest.raises(ClusterError, match="another command works on"):
        Place(tmp_path).up()


def test_folder_that_somebody_else_can_open_is_not_trusted(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ClusterError, match="nobody else can open"):
        place_module._own_folder(folder)
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    Path(tmp_path / "link").symlink_to(target)
    with pytest.raises(ClusterError, match="nobody else can open"):
        place_module._own_folder(tmp_path / "link")


def test_end_kills_what_does_not_listen_and_all_that_descends_from_it(tmp_path):
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]); print('ready', flush=True); time.sleep(60)"
    )
    child = processes.start([sys.executable, "-c", code], os.environ, tmp_path / "log", tmp_path)
    while "ready" not in (tmp_path / "log").read_text():
        time.sleep(0.02)
    marks = processes.marks([psutil.Process(child.pid)])
    family = processes.family(marks)
    assert len(family) == 2
    assert os.getsid(child.pid) == child.pid
    assert processes.end(marks, patience_seconds=0.5) == 2
    assert processes.family(processes.marks(family)) == []
    child.wait()
