"""What each fault does to a training, and what it makes of that; the training is a stand-in."""

import errno
import random
import socket
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import mlflow
import psutil
import pytest
import torch

from data_catalog.storage import filesystems
from data_catalog.storage.folders import Folder
from experiments.faults import cluster_nodes, fault_report, faults, training_process
from experiments.faults.cluster_nodes import ClusterNodes
from experiments.faults.faults import FAULTS, Disturbed, Fault, NotTriedError, Plan, Scene
from experiments.faults.mlflow_server import MlflowServer
from experiments.recipes import resolve
from experiments.run.checkpoints import Checkpoint
from experiments.run.run_folder import RunFolder
from stmi.network import why_unreachable
from tests.experiments import made_up


@pytest.fixture
def worker():
    """A process that looks like one of Ray Train's workers."""
    code = "import time; print('started', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, "ray::RayTrainWorker"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        # Its memory is then what it stays.
        process.stdout.readline()
        yield psutil.Process(process.pid)
        process.kill()


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """On this machine, after an undisturbed run that took no time."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    undisturbed = SimpleNamespace(
        config=resolve("demo"),
        journal=SimpleNamespace(epochs=lambda: [{"step": 40}]),
        finished_result=SimpleNamespace(seconds={"steps": 0.0}),
    )
    return Scene(make_plan(tmp_path), undisturbed, ClusterNodes(), random.Random(0), tmp_path)


def make_plan(folder, **changes):
    """How faults are tried here."""
    plan = Plan(
        options=(),
        workspace=Folder(folder),
        catalog=str(folder / "catalog"),
        on_cpus=True,
        kills=1,
        seed=0,
        may_end_nodes=False,
        away_seconds=0.0,
        most_seconds=1.0,
    )
    return replace(plan, **changes)


@pytest.fixture
def run(tmp_path):
    """A run that has begun."""
    return RunFolder(tmp_path)


def training(run, workers=(), **more):
    """One that does nothing, and whose journal is that of a run."""
    run.journal.append("untrained", processes=[{"host": socket.gethostname(), "pid": pid} for pid in workers])
    run.journal.append("checkpoint", step=30)
    calls = {name: lambda *given: 0 for name in ("start", "wait_for_end", "finish", "wait_for_training")}
    calls |= {"events": run.journal.read, "wait": lambda has_come: run.journal.read()}
    calls["last_words"] = lambda: "error: it diverged"
    return SimpleNamespace(run=run, **(calls | more))


def test_worker_is_killed_and_training_waited_for(scene, run, worker):
    training_again = training(run, [worker.pid], wait_for_training=lambda since: time.time() - since)
    disturbed = FAULTS["worker"].disturb(scene, training_again)
    assert worker.wait() == -9
    assert 0 < disturbed.seconds[0] < 60
    assert disturbed.lost == ()


def test_process_that_is_no_worker_is_left_alone():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        for touch in (cluster_nodes.kill_worker, cluster_nodes.slow_down, cluster_nodes.kill_raylet):
            with pytest.raises(ProcessLookupError, match="is no worker of Ray Train any more"):
                touch(other.pid)
        assert other.poll() is None
        other.kill()


def test_worker_that_has_ended_is_not_slowed_down(worker):
    worker.kill()
    while worker.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert cluster_nodes.slow_down(worker.pid) is None
    with pytest.raises(psutil.NoSuchProcess):
        cluster_nodes.kill_worker(worker.pid)


def test_slow_worker_stands_still_most_of_the_time_and_must_be_named(scene, run, worker):
    seen = set()

    def watch():
        end = time.monotonic() + 10
        while {psutil.STATUS_STOPPED, psutil.STATUS_SLEEPING} - seen and time.monotonic() < end:
            seen.add(worker.status())
            time.sleep(0.01)

    scene.random.randrange = lambda count: 1
    disturbed = FAULTS["slow"].disturb(scene, training(run, [1, worker.pid], finish=watch))
    assert seen >= {psutil.STATUS_STOPPED, psutil.STATUS_SLEEPING}
    assert disturbed.lost == ("the journal does not name worker 1 as slow",)
    run.journal.append("epoch", slow_worker={"rank": 1, "host": "here"})
    assert FAULTS["slow"].disturb(scene, training(run, [1, worker.pid])).lost == ()


@pytest.mark.parametrize(
    ("status", "words", "is_lost"),
    [
        (1, "error: the head of Ray at 10.0.0.7:6379 does not answer any more", False),
        (
            1,
            "rpc_client.h:204: Failed to connect to GCS within 60 seconds. The program will terminate.",
            True,
        ),
        (-11, "error: the head of Ray", True),
    ],
)
def test_command_that_loses_the_head_of_its_ray_must_say_so(scene, run, status, words, is_lost):
    ended = {"wait_for_end": lambda: status, "last_words": lambda: words, "kill_head": lambda: 0.0}
    disturbed = FAULTS["head"].disturb(scene, training(run, **ended, wait_for_training=lambda since: 3.0))
    assert disturbed.seconds == (3.0,)
    assert bool(disturbed.lost) == is_lost


def test_command_that_trains_to_its_end_before_it_notices_that_the_head_is_lost_has_lost_nothing(scene, run):
    ended = training(run, wait_for_end=lambda: 0, kill_head=lambda: 0.0, wait_for_training=pytest.fail)
    assert FAULTS["head"].disturb(scene, ended) == Disturbed()


def short_of_memory(run, worker, *events):
    """A training in whose journal there are events after those of its start."""
    beside = MagicMock()
    beside.return_value.__enter__.return_value.finish.side_effect = lambda: beside.call_args.args
    one = training(run, [worker.pid], wait_for_training=lambda since: 4.0, beside=beside)
    for event in events:
        run.journal.append(event)
    return one


def test_memory_of_a_worker_is_limited_and_the_run_to_end_as_one_with_more_micro_batches(scene, run, worker):
    disturbed = FAULTS["memory"].disturb(scene, short_of_memory(run, worker, "out_of_memory", "restarted"))
    limit, _ = worker.rlimit(psutil.RLIMIT_AS)
    assert limit == worker.memory_info().vms
    assert (disturbed.seconds, disturbed.lost) == ((4.0,), ())
    # The demo has one, on each of two workers.
    assert disturbed.expected == ("--set", "train.micro_batches=2")


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (["worker_failed", "restarted", "finished"], "ended in another way"),
        (["finished"], "needed no more memory"),
        (["out_of_memory", "resumed", "finished"], "only after the first checkpoint"),
    ],
)
def test_worker_that_does_not_run_out_of_memory_in_its_first_steps_is_no_test_of_that(
    scene, run, worker, events, reason
):
    with pytest.raises(NotTriedError, match=reason):
        FAULTS["memory"].disturb(scene, short_of_memory(run, worker, *events))


@pytest.mark.parametrize("behind", [False, True])
def test_run_that_ends_while_mlflow_is_away_is_sent_by_the_next_start(scene, run, monkeypatch, behind):
    done = []
    server = MagicMock(uri="http://127.0.0.1:1")
    server.__enter__.return_value = server
    server.kill.side_effect = lambda: done.append("kill")
    server.start.side_effect = lambda: done.append("start again")
    monkeypatch.setattr(faults, "MlflowServer", lambda folder: server)
    monkeypatch.setattr(faults, "find_missing", lambda uri, finished: [f"{uri} lacks all"])
    result = {"mlflow": {"behind": behind}}
    started = {"start": lambda: done.append("train"), "command": [], "result": result}
    one = training(run, **started)
    assert FAULTS["mlflow"].disturb(scene, one).lost == ("http://127.0.0.1:1 lacks all",)
    assert done == ["train", "kill", "start again", *(["train"] if behind else [])]
    assert one.command == ["--tracking-uri", server.uri]


@pytest.mark.slow
def test_mlflow_server_is_the_same_one_after_it_was_killed(tmp_path):
    with MlflowServer(tmp_path) as server:
        client = mlflow.MlflowClient(server.uri)
        made = client.create_experiment("demo")
        server.kill()
        assert why_unreachable(server.uri) is not None
        server.start()
        assert client.get_experiment_by_name("demo").experiment_id == made
    assert why_unreachable(server.uri) is not None


def test_sigterm_loses_steps_where_the_last_ones_have_no_checkpoint(scene, run):
    def start_again(since):
        run.journal.append("resumed", step=28)
        return 2.0

    disturbed = FAULTS["terminated"].disturb(
        scene, training(run, send=lambda number: 0.0, wait_for_training=start_again)
    )
    assert disturbed.seconds == (2.0,)
    assert disturbed.lost == ("exit status 0, not 75", "2 steps were trained again")


@pytest.mark.parametrize(
    ("facts", "weight", "lost"),
    [
        ({"samples": ["a"]}, 1.0, ()),
        ({"samples": ["a"]}, torch.nan, ("weight of the last checkpoint is not finite",)),
        ({}, 1.0, ("the journal does not name the batch: error: it diverged",)),
    ],
)
def test_batch_of_a_loss_that_is_not_finite_is_named_and_weights_stay_finite(scene, run, facts, weight, lost):
    checkpoint = made_up.checkpoint()
    other = Checkpoint({"weight": torch.full((1,), weight)}, *list(vars(checkpoint).values())[1:])
    other.store(*filesystems.open_root(run.file("checkpoint_1")))
    run.journal.append("checkpoint", step=3, checkpoint="checkpoint_1")
    stopped = training(run)
    run.journal.append("stopped", step=4, **facts)
    disturbed = FAULTS["nan"].disturb(scene, stopped)
    assert (disturbed.lost, disturbed.goes_on) == (lost, False)


def test_small_disk_holds_one_checkpoint_and_not_two_until_it_is_enlarged(scene, run):
    """What the training writes here are files as large as those of a checkpoint."""
    checkpoint = Folder(scene.folder / "undisturbed")
    for name in ("model.safetensors", "training.pt"):
        checkpoint.write(name, bytes(100_000))
    scene.undisturbed.finished_result.checkpoint = checkpoint.location
    disk = scene.folder / "disk"
    disk.mkdir()
    scene.folder, written = disk, []

    def train():
        """Write checkpoints until there is no room, and go on where there is."""
        try:
            for number in range(len(written), 4):
                (disk / str(number)).write_bytes(bytes(200_000))
                written.append(number)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - any other one is raised by what follows
            (disk / str(number)).unlink()

    words = f"error: {disk}/1 could not be written: No space left on device"
    given = {"start": train, "last_words": lambda: words, "wait_for_end": lambda: len(written) < 4}
    try:
        disturbed = FAULTS["disk"].disturb(scene, training(run, **given, wait_for_training=lambda since: 5.0))
    except NotTriedError as error:
        pytest.skip(str(error))
    assert written == [0, 1, 2, 3]
    assert (disturbed.seconds, disturbed.lost) == ((5.0,), ())


def test_fault_that_cannot_be_produced_says_what_it_needs(scene, run):
    with pytest.raises(NotTriedError, match="needs a cluster of two"):
        FAULTS["node"].disturb(scene, training(run))


@pytest.mark.parametrize(
    ("location", "endpoint"),
    [
        ("/local", "http://127.0.0.1:9000"),
        ("s3://lab/runs", ""),
        ("s3://lab/runs", "https://s3.eu-west-1.amazonaws.com"),
        ("s3://lab/runs?endpoint_override=127.0.0.1:9000&scheme=http", "http://127.0.0.1:9000"),
    ],
)
def test_storage_that_no_gate_can_stand_before_is_not_cut_off(scene, run, monkeypatch, location, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    workspace = SimpleNamespace(location=location, is_local=location.startswith("/"))
    with pytest.raises(NotTriedError, match="needs object storage on plain HTTP: --workspace s3://BUCKET"):
        FAULTS["storage"].disturb(scene, training(run, workspace=workspace))


def test_error_in_one_fault_is_its_outcome_and_the_next_one_is_tried(tmp_path, monkeypatch):
    """A worker may be replaced, or a node be gone, just when it is to be disturbed."""

    def fail(scene, training):
        raise ProcessLookupError("process 7 is no worker of Ray Train any more")

    def leave_alone(scene, training):
        return Disturbed(goes_on=False)

    undisturbed = SimpleNamespace(
        name="run", config=resolve("demo"), journal=SimpleNamespace(epochs=lambda: [{"step": 40}])
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(fault_report, "_train_undisturbed", lambda *given: undisturbed)
    for name, disturb in (("worker", fail), ("driver", leave_alone)):
        monkeypatch.setitem(FAULTS, name, Fault(disturb))
    seen = []
    report = fault_report.try_faults(
        ["worker", "driver"], make_plan(tmp_path), lambda name: None, seen.append
    )
    assert report.outcomes == tuple(seen)
    worker, driver = seen
    assert worker.lost == (
        "it could not be tried to its end (ProcessLookupError: process 7 is no worker of Ray Train any more)",
    )
    assert (driver.lost, driver.not_tried) == ((), None)
    assert (report.has_lost, report.is_exact) == (True, True)
    elastic = fault_report.try_faults([], make_plan(tmp_path, is_elastic=True), lambda name: None)
    assert not elastic.is_exact


def test_as_many_kills_as_are_allowed_find_their_moments(scene):
    for steps in range(1, 60):
        scene.undisturbed.journal.epochs = lambda steps=steps: [{"step": steps}]
        most = training_process.most_moments(steps)
        assert len(set(scene.moments(most))) == most
        assert max(scene.moments(most)) <= max(1, 0.75 * steps)
