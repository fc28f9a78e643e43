"""How often a run goes on after it has lost workers."""

import pytest
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from data_catalog.errors import StorageAwayError
from experiments.run.workers.trainer import ProgressFailurePolicy
from experiments.tracking.journal import Journal

GOES_ON, ENDS = FailureDecision.RETRY, FailureDecision.RAISE


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


@pytest.fixture
def policy(journal):
    return ProgressFailurePolicy(FailureConfig(max_failures=2, controller_failure_limit=2), journal)


def lose_worker(policy):
    return policy.make_decision(WorkerGroupError("lost", {0: RuntimeError("peer closed")}))


def test_without_a_checkpoint_in_between_a_run_survives_so_many_failures_and_no_more(policy):
    assert [lose_worker(policy) for _ in range(3)] == [GOES_ON, GOES_ON, ENDS]


def test_after_each_checkpoint_failures_are_counted_anew(policy, journal):
    for step in range(10):
        journal.append("checkpoint", step=step, checkpoint=f"checkpoint_{step}")
        assert [lose_worker(policy), lose_worker(policy)] == [GOES_ON, GOES_ON]
        # An epoch without a checkpoint would be trained again.
        journal.append("epoch", step=step)
    assert lose_worker(policy) == ENDS


def test_starts_for_which_there_is_no_room_are_counted_anew_too(policy, journal):
    def start_in_vain():
        return policy.make_decision(ControllerError(WorkerGroupStartupTimeoutError(2)))

    assert [start_in_vain(), start_in_vain()] == [GOES_ON, GOES_ON]
    journal.append("checkpoint", step=1, checkpoint="checkpoint_1")
    assert [start_in_vain() for _ in range(3)] == [GOES_ON, GOES_ON, ENDS]


def test_journal_that_is_out_of_reach_is_no_progress(policy, journal, monkeypatch):
    journal.append("checkpoint", step=1, checkpoint="checkpoint_1")
    assert lose_worker(policy) == GOES_ON

    def refuse():
        raise StorageAwayError("s3://lab has not answered")

    monkeypatch.setattr(journal, "read", refuse)
    assert [lose_worker(policy), lose_worker(policy)] == [GOES_ON, ENDS]
