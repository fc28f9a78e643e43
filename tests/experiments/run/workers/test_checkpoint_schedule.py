from types import SimpleNamespace

import pytest

from experiments.experiment_config import TrainConfig
from experiments.run.workers import checkpoint_schedule
from experiments.run.workers.checkpoint_schedule import CheckpointSchedule, Due


class FirstWorker:
    """A session whose wishes are agreed to."""

    def __init__(self):
        self.stop_request = SimpleNamespace(is_made=False)

    def agree(self, wish):
        return wish


class OtherWorker(FirstWorker):
    """A session of a worker whose own clock does not count."""

    def agree(self, wish):
        return 0


@pytest.fixture
def clock(monkeypatch):
    """Seconds on the clock: the first entry of a list that a test changes."""
    seconds = [0.0]
    monkeypatch.setattr(checkpoint_schedule.time, "monotonic", lambda: seconds[0])
    return seconds


def schedule(session=None, **settings):
    return CheckpointSchedule(TrainConfig(epochs=6, **settings), session or FirstWorker())


def test_by_default_a_run_is_checkpointed_by_epochs_alone():
    due = schedule(checkpoint_every=4)
    assert not any(due.after_step(step) for step in range(1, 60))
    # The last epoch always is.
    assert [epoch for epoch in range(1, 7) if due.after_epoch(epoch, Due.NOTHING)] == [4, 6]


def test_every_so_many_steps_counts_the_steps_of_the_run():
    due = schedule(checkpoint_steps=4, checkpoint_every=5)
    due_after = {step: due.after_step(step) for step in range(1, 31)}
    assert [step for step, found in due_after.items() if found] == [4, 8, 12, 16, 20, 24, 28]
    # Epochs of six steps: the second one ends with a step that has a checkpoint.
    assert [epoch for epoch in range(1, 6) if due.after_epoch(epoch, due_after[6 * epoch])] == [2, 4, 5]


def test_minutes_count_from_the_last_checkpoint_on_the_clock_of_the_first_worker(clock):
    due, other = (schedule(session, checkpoint_minutes=0.5) for session in (FirstWorker(), OtherWorker()))
    seen = []
    for step in range(1, 10):
        clock[0] += 12.0
        seen.append(due.after_step(step))
        assert not other.after_step(step)
    assert [number + 1 for number, is_due in enumerate(seen) if is_due] == [3, 6, 9]


def test_minutes_begin_anew_with_a_checkpoint_by_steps(clock):
    due = schedule(checkpoint_minutes=0.5, checkpoint_steps=2)
    seen = []
    for step in range(1, 6):
        clock[0] += 20.0
        seen.append(due.after_step(step))
    assert seen == [False, True, False, True, False]


def test_request_to_stop_counts_at_the_next_step():
    session = FirstWorker()
    due = schedule(session, checkpoint_steps=2)
    seen = [due.after_step(1), due.after_step(2)]
    session.stop_request.is_made = True
    assert [*seen, due.after_step(3)] == [Due.NOTHING, Due.CHECKPOINT, Due.STOP]
