"""What is read in the journal of a training that is disturbed."""

import time

import pytest

from data_catalog.storage.folders import Folder
from experiments.faults.training_process import (
    EndedError,
    TrainingProcess,
    processes_of,
    steps_since_begin,
)

WORKERS = [{"host": "a", "pid": 1}, {"host": "b", "pid": 2}]
STEPS = [{"event": "epoch", "step": 4}, {"event": "checkpoint", "step": 5}]


def test_steps_count_from_the_last_start_on():
    begun = [{"event": "untrained", "processes": WORKERS}]
    assert steps_since_begin([]) == steps_since_begin(begun) == 0
    assert steps_since_begin([*begun, *STEPS]) == 5
    resumed = {"event": "resumed", "step": 5, "processes": WORKERS[:1]}
    assert steps_since_begin([*begun, *STEPS, resumed]) == 0
    assert steps_since_begin([*begun, *STEPS, resumed, {"event": "epoch", "step": 8}]) == 8


def test_workers_are_those_of_the_last_start():
    events = [{"event": "untrained", "processes": WORKERS}, {"event": "resumed", "processes": WORKERS[:1]}]
    assert processes_of([]) == []
    assert processes_of(events[:1]) == WORKERS
    assert processes_of(events) == WORKERS[:1]


def test_training_that_is_refused_says_why(tmp_path):
    refused = ["--set", "nosuch=1"]
    with TrainingProcess(refused, Folder(tmp_path), tmp_path / "log", 60) as training:
        training.start()
        with pytest.raises(
            EndedError, match="the command ended before that: error: setting nosuch is unknown"
        ):
            training.wait(lambda events: events)
        with pytest.raises(EndedError, match="exit status 2: error: setting nosuch"):
            training.finish()
        # Once more, as after a crash that a second start survives.
        with pytest.raises(EndedError, match="error: setting nosuch"):
            training.wait_for_training(time.time())
        assert training.starts == 2


def test_training_beside_another_has_its_options_and_more_and_a_workspace_of_its_own(tmp_path):
    one = TrainingProcess(["--recipe", "demo"], Folder(tmp_path / "memory"), tmp_path / "memory.log", 60)
    one.command.append("--resume")
    other = one.beside("--seed", "1")
    assert other.command == [*one.command[:2], "--recipe", "demo", "--seed", "1", *other.command[-3:]]
    assert other.command[-3:] == ["--json", "--workspace", str(tmp_path / "memory-beside")]
    assert other.log not in (one.log, one.log.with_suffix(".json"))
