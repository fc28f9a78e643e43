"""Workers of Ray Train start within a time limit, and each start that fails is an event of the journal."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from data_catalog.ray_failures import describe_failure
from experiments.run.run_result import RunError
from experiments.run.workers import worker_start
from experiments.run.workers.worker_start import PromptWorkerGroup, StartCallback
from experiments.tracking.journal import Journal


class Worker:
    """What Ray Train asks a worker first."""

    def get_metadata(self):
        raise AssertionError("it has not started")


class Sleeping(Worker):
    """A worker that does not come to its first answer."""

    def __init__(self):
        time.sleep(600)


class Killed(Worker):
    """A worker that the system ends at its start."""

    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def start(ray_session, monkeypatch):
    """Starts a group of one such worker; the time limit is the second argument."""

    def run(worker, seconds):
        placement = ray.util.placement_group([{"CPU": 0.1}])
        ray.get(placement.ready())
        group = PromptWorkerGroup.__new__(PromptWorkerGroup)
        group._worker_cls, group.start_seconds = worker, seconds
        group._train_run_context = SimpleNamespace(run_config=SimpleNamespace(worker_runtime_env={}))
        try:
            group._create_workers(1, placement, {"CPU": 0.1})
        finally:
            ray.util.remove_placement_group(placement)

    return run


def test_worker_that_does_not_start_is_given_up_in_one_line(start):
    with pytest.raises(RunError) as ended:
        start(Sleeping, 4.0)
    message = describe_failure(ControllerError(ended.value))
    assert message.startswith("no worker of Ray has started within 4 s on node ")
    assert "\n" not in message
    assert "log" in message


def test_worker_that_is_killed_at_its_start_is_no_late_one(start):
    with pytest.raises(WorkerGroupStartupFailedError) as ended:
        start(Killed, 60.0)
    assert "killed or crashed" in describe_failure(ControllerError(ended.value))


def test_controller_starts_workers_within_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(TrainController, "worker_group_cls", TrainController.worker_group_cls)
    StartCallback(Journal(tmp_path / "journal.jsonl")).after_controller_start(None)
    assert TrainController.worker_group_cls is PromptWorkerGroup
    assert 60 <= worker_start.START_SECONDS == PromptWorkerGroup.start_seconds <= 300


def test_each_start_that_failed_is_an_event(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    callback = StartCallback(journal)
    # What workers raise once they train is noted where it is raised.
    callback.after_controller_state_update(
        None, RestartingState(WorkerGroupError("failed", {0: ValueError()}))
    )
    assert journal.read() == []
    callback.after_controller_state_update(
        None, ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
    )
    event = journal.last("worker_failed")
    assert "no room for the workers" in event["reasons"]["start"]
    assert "startup timed out" in event["errors"]["start"]
