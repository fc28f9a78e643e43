"""How the end of Ray Train's workers and of their controller reaches the user and the journal."""

from types import SimpleNamespace

import pytest
import ray
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from data_catalog.ray_failures import MAX_FAILURES
from data_catalog.storage.folders import Folder
from experiments.recipes import resolve
from experiments.run.run_result import RunError
from experiments.run.workers import ray_train, trainer, worker
from experiments.run.workers.training_input import TrainingInput
from experiments.tracking.journal import Journal
from tests.data_catalog.test_ray_failures import KILLED, SHORT_OF_MEMORY, died


@pytest.fixture
def folder(tmp_path):
    """What training needs to know of a run's folder."""
    journal = Journal(tmp_path / "journal.jsonl")
    return SimpleNamespace(name="run", checkpoints=Folder(tmp_path), journal=journal, storage=None)


@pytest.fixture
def train(folder, monkeypatch):
    """Trains with a trainer that does what is asked for; returns what it was made with."""
    made = {}

    def run(fit, abort=lambda: None):
        def make(function, **options):
            made.update(options)
            return SimpleNamespace(fit=fit, abort=abort)

        monkeypatch.setattr(trainer, "Trainer", make)
        given = TrainingInput(resolve("demo"), {}, {}, "clip", None)
        ray_train.train_on_workers(given, folder, SimpleNamespace(gpus_per_worker=None, fewest_workers=None))
        return made

    monkeypatch.setattr(ray_train, "ensure_ray", lambda: None)
    monkeypatch.setattr(
        default_autoscaling_coordinator, "get_or_create_autoscaling_coordinator", lambda: None
    )
    nodes = iter([{"1": "first", "2": "second"}, {"1": "first", "3": "third"}])
    monkeypatch.setattr(ray_train, "living_nodes", nodes.__next__)
    monkeypatch.setattr(ray_train, "worker_resources", lambda *given: {"use_gpu": False})
    return run


def test_every_retry_has_an_end(train, folder):
    made = train(lambda: None)
    assert made["journal"] is folder.journal
    failures = made["run_config"].failure_config
    assert failures.max_failures == failures.controller_failure_limit == MAX_FAILURES
    assert 0 < failures.max_preemption_failures < 100


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            WorkerGroupError("page\nof text", {1: ray.exceptions.OutOfMemoryError(SHORT_OF_MEMORY)}),
            ["10.0.0.7", "batch.size"],
        ),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), ["no room for the workers"]),
        (died(KILLED), ["killed or crashed", "batch.size"]),
        (ray.exceptions.NodeDiedError("node died"), ["a node of the cluster was lost"]),
    ],
    ids=["worker", "start", "controller", "node"],
)
def test_the_end_of_training_is_one_line_and_an_event(train, folder, error, parts):
    def fit():
        raise error

    with pytest.raises(RunError) as ended:
        train(fit)
    message = str(ended.value)
    assert "\n" not in message
    lost = "(since the run began the cluster lost second)"
    for part in ("run run failed: ", lost, folder.journal.location, "the same command continues", *parts):
        assert part in message
    failed = folder.journal.last("failed")
    assert "\n" not in failed["error"]
    assert failed["error"] in message
    assert failed["detail"] == str(error)


def test_ctrl_c_ends_the_workers_and_reaches_the_caller(train, folder):
    ended = []

    def fit():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fit, lambda: ended.append(True))
    assert ended == [True]
    assert folder.journal.last("failed") is None


def test_the_failure_of_a_worker_is_an_event_with_its_reason(folder):
    callback = worker.JournalCallback(folder.journal, None)
    callback.after_exception(None, {0: RuntimeError("peer closed"), 1: died(KILLED)})
    event = folder.journal.last("worker_failed")
    assert event["reasons"]["0"] == "peer closed"
    assert "killed or crashed" in event["reasons"]["1"]
