"""Ray is joined or started, or refused within seconds where that would be waited for in vain."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray

from data_catalog import __main__ as command_line
from data_catalog import ray_session
from data_catalog.environment import SHARING, WAITING
from data_catalog.errors import CatalogError
from data_catalog.ray_session import check_ray, ensure_ray
from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE
from experiments import train
from experiments.recipes import ROOT
from tests.data_catalog.folders import write_data_set

WAITS = {name: value for name, value in SHARING.items() if name in WAITING}
SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No cluster is named, and what a test sets is forgotten."""
    before = dict(os.environ)
    names = (
        *("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"),
        *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    )
    for name in (*names, *WAITING):
        os.environ.pop(name, None)
    os.environ["HOME"] = "/nosuch"
    yield
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def asked(monkeypatch):
    """How Ray is asked to start, or to join a cluster."""
    asked = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(ray_session, "_check_workers", lambda: None)
    monkeypatch.setattr(ray_session, "_begin_watch", lambda: None)
    return asked


@pytest.fixture
def joined(asked, monkeypatch):
    """The same, with the address of a cluster."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray_session, "check_ray", lambda: None)
    monkeypatch.setattr(ray_session, "WORKER_VARIABLES", {"PATIENCE": "20"})
    return asked


def test_workers_of_a_cluster_import_from_where_this_process_does(joined, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/tree:/other")
    ensure_ray()
    assert joined["address"] == "head:6379"
    variables = {"PYTHONPATH": "/tree:/other", "PATIENCE": "20", **WAITS}
    assert joined["runtime_env"] == {"env_vars": variables}


def test_submitted_job_keeps_the_tree_that_it_came_with(joined, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/tree")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    ensure_ray()
    assert joined["runtime_env"] == {"env_vars": {"PATIENCE": "20", **WAITS}}


def test_what_a_submitted_job_gives_its_workers_is_not_given_again(joined, monkeypatch):
    """Ray would refuse it."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    job = {"runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "ACTIVE"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    ensure_ray()
    assert joined["runtime_env"] == {"env_vars": {"PATIENCE": "20"}}


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_without_an_address_ray_runs_here_on_the_processors_of_this_process(asked, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray_session, "usable_processors", lambda: 3)
    ensure_ray()
    assert (asked["address"], asked["num_cpus"]) == ("local", 3)


@pytest.mark.parametrize("mode", [None, "token"])
def test_a_ray_of_this_machine_has_a_token_of_its_own_where_there_is_none(asked, monkeypatch, tmp_path, mode):
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    # A cluster that has ended left its path.
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    ensure_ray()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    first = os.environ.pop("RAY_AUTH_TOKEN")
    assert len(first) == 64
    ensure_ray()
    assert os.environ.pop("RAY_AUTH_TOKEN") != first
    # One that is there is used.
    (tmp_path / "token").write_text("a" * 64)
    ensure_ray()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_ray_of_this_machine_has_no_token_where_the_user_wants_none(asked, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ensure_ray()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ


STARTING = """
import os, subprocess, sys
from data_catalog.ray_session import ensure_ray
ensure_ray()
import ray
address = ray.get_runtime_context().gcs_address
for other in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "a" * 64}, {}):
    joining = f"import ray; ray.init(address={address!r}, log_to_driver=False); print(len(ray.nodes()))"
    command = [sys.executable, "-c", joining]
    joined = subprocess.run(command, env=os.environ | other, capture_output=True, text=True, timeout=200)
    print(joined.returncode == 0 and joined.stdout.endswith("1\\n"))
"""
"""Starts Ray, and joins it without a token, with another one, and as a child of the process does."""


@pytest.mark.slow
def test_nobody_without_its_token_gets_into_a_ray_of_this_machine(tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", STARTING], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    assert found.stdout.splitlines()[-3:] == ["False", "False", "True"]


def test_ray_does_not_decide_what_a_signal_does(asked, monkeypatch):
    def own(number, frame):
        """Of the caller."""

    monkeypatch.setattr(ray, "init", lambda **options: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    before = signal.signal(signal.SIGTERM, own)
    try:
        ensure_ray()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def listening(answer: bytes | None):
    """Address of a server that gives this answer to the first words; None for one that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                if connection.recv(24) and answer is not None:
                    connection.sendall(answer)
                taken.append(connection)

        taken: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for connection in taken:
            connection.close()


def refusal(address: str) -> str:
    began = time.monotonic()
    os.environ["RAY_ADDRESS"] = address
    with pytest.raises(CatalogError) as refused:
        check_ray()
    assert time.monotonic() - began < 8
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"RAY_ADDRESS={address}")
    assert "unset" in message
    return message


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "no-such-host.invalid:6379"])
def test_an_address_at_which_nobody_listens_is_refused_at_once(address):
    assert "no Ray cluster answers there" in refusal(address)


@pytest.mark.parametrize("address", ["127.0.0.1:port", "127.0.0.1", "127.0.0.1:99999999"])
def test_an_address_that_is_none_is_refused_at_once(address):
    assert "no Ray cluster answers there" in refusal(address)


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("http://127.0.0.1:8265", "ray job submit --address http://127.0.0.1:8265"),
        ("ray://127.0.0.1:10001", "without ray://"),
    ],
)
def test_an_address_of_another_kind_is_refused_at_once(address, hint):
    message = refusal(address)
    assert hint in message
    assert "HOST:PORT" in message


def test_another_program_at_the_address_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(ray_session, "CONNECT_SECONDS", 0.3)
    for answer, what in (
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a web server, such as the dashboard, listens there"),
        (b"220 mail.example", "no Ray"),
        (None, "does not answer"),
    ):
        with listening(answer) as address:
            assert what in refusal(address)
    with listening(SETTINGS_FRAME) as address:
        os.environ["RAY_ADDRESS"] = address
        check_ray()


def test_a_cluster_whose_token_is_gone_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    message = refusal("127.0.0.1:6379")
    assert f"there is no token at RAY_AUTH_TOKEN_PATH={tmp_path / 'token'}" in message


def test_a_temporary_folder_that_is_too_long_for_sockets_is_named(monkeypatch, tmp_path):
    long = tmp_path / ("long" * 20)
    monkeypatch.setenv("TMPDIR", str(long))
    with pytest.raises(
        CatalogError, match=r"^TMPDIR=.*longlong.* RAY_TMPDIR for Ray alone, .* at most \d\d bytes"
    ):
        check_ray()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_ray()


def test_nothing_is_made_where_there_is_no_cluster(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv(LOCAL_SECONDS_VARIABLE, "10")
    write_data_set(tmp_path / "images")
    catalog = tmp_path / "catalog"
    ingest = [
        "ingest",
        "--source",
        str(tmp_path / "images"),
        "--catalog",
        str(catalog),
        "--format",
        "rgbnt201",
    ]
    assert command_line.main(ingest) == 2
    assert train.main(["--recipe", "demo", "--workspace", str(tmp_path / "runs")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there" in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_table_that_is_there_or_made_in_this_process_needs_no_cluster(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    write_data_set(tmp_path / "images")
    where = ["--catalog", str(tmp_path / "catalog")]
    steps = [
        ["ingest", "--format", "rgbnt201", "--source", str(tmp_path / "images"), "--dataset", "rgbnt201"],
        ["masks", "--dataset", "rgbnt201", "--segmenter", "grabcut"],
        ["view", "--dataset", "rgbnt201", "--split", "all", "--size", "32x16", "--no-text"],
    ]
    assert [command_line.main([*step, *where]) for step in steps] == [0, 0, 0], capsys.readouterr().err
    monkeypatch.setenv(LOCAL_SECONDS_VARIABLE, "0")
    assert [command_line.main([*step, *where]) for step in steps] == [0, 0, 0], capsys.readouterr().err
    assert command_line.main([*steps[2], "--size", "64x32", *where]) == 2
    assert "no Ray cluster answers there" in capsys.readouterr().err


@pytest.fixture
def silent(monkeypatch, tmp_path):
    """Of two nodes that live, those with these ids start no worker; gives the refusal."""
    (tmp_path / "worker-1.err").write_text("")
    (tmp_path / "worker-2.err").write_text(
        "Traceback (most recent call last):\nModuleNotFoundError: No module ray\n"
    )
    node = SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path))
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a" * 56))
    names = {one: {"NodeManagerHostname": f"host-{one}", "NodeManagerAddress": one} for one in "abc"}
    nodes = [{"NodeID": one * 56, "Alive": one != "c", **name} for one, name in names.items()]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    class Task:
        def options(self, scheduling_strategy):
            return SimpleNamespace(remote=lambda: scheduling_strategy.node_id)

    monkeypatch.setattr(ray, "remote", lambda **options: lambda function: Task())
    monkeypatch.setattr(ray, "get", lambda tasks: [None for _ in tasks])

    def refuse(*ids):
        def wait(tasks, num_returns, timeout):
            assert (num_returns, tasks) == (2, ["a" * 56, "b" * 56])
            assert 0 < timeout <= 300
            return [task for task in tasks if task[0] not in ids], [task for task in tasks if task[0] in ids]

        monkeypatch.setattr(ray, "wait", wait)
        with pytest.raises(CatalogError) as refused:
            ray_session._check_workers()
        return str(refused.value)

    return refuse


def test_workers_that_do_not_start_end_the_run_with_the_end_of_their_log(silent, tmp_path):
    message = silent("a", "b")
    assert message.startswith("no worker of Ray has started within 180 s on node host-a (a); ")
    assert message.endswith(
        f"{tmp_path}/worker-2.err ends with: Traceback (most recent call last): | "
        "ModuleNotFoundError: No module ray"
    )


def test_another_node_without_workers_is_named_with_the_folder_of_its_logs(silent, tmp_path):
    assert silent("b") == (
        f"no worker of Ray has started within 180 s on node host-b (b); its logs are in {tmp_path} there"
    )


class LostError(Exception):
    """Raised in place of the end of this process."""


@pytest.mark.parametrize(
    ("address", "seconds", "looks"),
    # Of the head that this process has started, and of that of a cluster, which may come back for 30 seconds.
    [("local", 2, [True, False, True, False, False, True, False, False, False]),
     ("local", 60, [False, True, False, False, False]),
     ("head:6379", 10, [True, False, False, True, False, False, False, False])],
)  # fmt: skip
def test_head_is_lost_where_it_does_not_answer_some_times_in_a_row(monkeypatch, address, seconds, looks):
    now, left = [0.0], list(looks)

    def look(url):
        assert url == "//10.0.0.7:6379"
        return None if left.pop(0) else "10.0.0.7: Connection refused"

    def lose(reason):
        raise LostError(reason)

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_session, "why_unreachable", look)
    monkeypatch.setattr(ray_session, "fail", lose)
    monkeypatch.setattr(ray_session.atexit, "unregister", lambda function: None)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: now.append(now.pop() + seconds))
    monkeypatch.setattr(ray_session, "time", clock)
    with pytest.raises(LostError, match=r"head of Ray at 10.0.0.7:6379 .* run the same command again"):
        ray_session._watch_head("10.0.0.7:6379")
    assert left == []


LOSING = """
import os, signal, time
import psutil, ray
from data_catalog.interrupts import end_on_interrupt, interruptible
from data_catalog.ray_session import ensure_ray

end_on_interrupt()
with interruptible("error: kept"):
    ensure_ray()
    wait = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    head, = (one for one in psutil.Process().children(recursive=True) if one.name() == "gcs_server")
    print(*(one.pid for one in psutil.Process().children(recursive=True)), flush=True)
    head.kill()
    ray.get(wait)
"""


@pytest.mark.slow
def test_command_whose_ray_loses_its_head_ends_in_one_line_and_leaves_no_process():
    """Ray would let it wait for a minute, and end it with a line of its log."""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", LOSING], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    lines = ended.stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert "the head of Ray at " in line
    assert "run the same command again to continue" in line
    assert "will terminate" not in ended.stderr
    assert ended.returncode == 1
    left = [psutil.Process(pid) for pid in map(int, ended.stdout.split()) if psutil.pid_exists(pid)]
    # What was killed last may still be ending.
    _, running = psutil.wait_procs(left, timeout=20)
    assert [process for process in running if process.status() != psutil.STATUS_ZOMBIE] == []
