"""What a run that was interrupted shows and notes when it goes on."""

import time

import mlflow
import pytest

from data_catalog.errors import NotWritableError, StorageAwayError
from experiments.run import lifecycle
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import InterruptedRunError, RunError, StoppedError
from experiments.tracking.mlflow_store import local_store
from tests.experiments import small_run


@pytest.fixture
def interrupted(ray_session, clip, workspace, tmp_path):
    """A function that trains the small run until after an epoch, with a checkpoint every so many epochs."""

    def interrupt(after, *changes):
        def on_report(facts):
            if facts["event"] == "epoch" and facts["epoch"] == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            small_run.alone(clip, workspace, *changes, runs=tmp_path, on_report=on_report)

    return interrupt


@pytest.mark.parametrize(("every", "kept"), [(3, 0), (2, 2)])
def test_epochs_that_will_be_repeated_are_not_shown_as_done(
    interrupted, clip, workspace, tmp_path, monkeypatch, every, kept
):
    changes = ["train.epochs=4", f"train.checkpoint_every={every}"]
    interrupted(3 if every == 2 else 2, *changes)
    shown, bar, reported = [], lifecycle.open_progress, []

    def open_progress(title, unit, total, done=0, **options):
        shown.append((done, total))
        return bar(title, unit, total, done, **options)

    monkeypatch.setattr(lifecycle, "open_progress", open_progress)
    config, tables = small_run.configured(clip, workspace, *changes)
    lifecycle.run(config, tables, RunOptions.resolve(tmp_path), threads=1, on_report=reported.append)
    assert shown == [(kept, 4)]
    # The epochs that are kept, then each of the others once.
    assert [facts["epoch"] for facts in reported if facts["event"] == "epoch"] == [1, 2, 3, 4]


def test_start_before_the_first_checkpoint_is_noted_and_measures_the_untrained_model_once(
    interrupted, clip, workspace, tmp_path
):
    interrupted(2, "train.checkpoint_every=3")
    run = small_run.alone(clip, workspace, "train.checkpoint_every=3", runs=tmp_path)
    events = run.journal.read()
    assert [event["event"] for event in events].count("untrained") == 1
    assert [event["epoch"] for event in events if event["event"] == "started"] == [0, 0]
    assert [event["epoch"] for event in events if event["event"] == "restarted"] == [0]
    assert not run.result.resumed
    undisturbed = small_run.alone(clip, workspace, "train.checkpoint_every=3", runs=tmp_path / "undisturbed")
    assert run.result.losses == undisturbed.result.losses
    assert run.result.untrained == undisturbed.result.untrained


def test_mlflow_shows_how_each_start_of_a_run_ended_and_that_it_goes_on(
    clip, workspace, tmp_path, monkeypatch
):
    config, tables = small_run.configured(clip, workspace)
    options = RunOptions.resolve(tmp_path, tracking_uri=local_store(workspace))
    folder = RunFolder.of(tmp_path, config, tables)
    client = mlflow.MlflowClient(options.tracking_uri)

    ids = set()

    def status():
        if folder.mlflow is None or folder.mlflow.run_id is None:
            return None
        ids.add(folder.mlflow.run_id)
        return client.get_run(folder.mlflow.run_id).info.status

    def start(error):
        def train(*given):
            deadline = time.monotonic() + 60
            while status() != "RUNNING":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            raise error

        monkeypatch.setattr(lifecycle, "train_on_workers", train)
        with pytest.raises(type(error)):
            lifecycle.run(config, tables, options)
        return status()

    assert start(RunError("a node of the cluster was lost")) == "FAILED"
    assert start(StoppedError("the loss is nan")) == "FAILED"
    assert start(StorageAwayError("s3://lab has not answered")) == "FAILED"
    assert start(NotWritableError("no space left on device")) == "FAILED"
    assert start(InterruptedRunError("stopped by SIGTERM")) == "KILLED"
    assert start(KeyboardInterrupt()) == "KILLED"
    assert len(ids) == 1
