import json
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
import ray
import torch

from data_catalog.errors import StorageAwayError
from data_catalog.storage.claims import claim
from experiments import evaluate
from experiments.recipes import resolve
from experiments.run import lifecycle
from experiments.run.checkpoints import Checkpoint
from experiments.run.evaluation import QUERY_SCHEMA
from experiments.run.lifecycle import BusyError
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import RunError, StoppedError
from experiments.run.workers.session import OwnProcessSession
from experiments.studies import trial
from experiments.tracking.journal import Journal
from stmi.model import FEATURES
from tests.experiments import made_up, small_run
from tests.tolerances import ROUNDING_FLOAT32


class KilledError(Exception):
    """Replaces the end of a process."""


@pytest.fixture(scope="module")
def alone(ray_session, clip, workspace, tmp_path_factory):
    # In a folder of its own: a study may have trained this run on other threads, which round otherwise.
    return small_run.alone(clip, workspace, runs=tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
def test_run_in_its_own_process_has_the_losses_of_two_ray_train_workers(alone, trained):
    for one, two in zip(alone.result.losses, trained["losses"], strict=True):
        assert one == pytest.approx(two, rel=ROUNDING_FLOAT32)
    assert set(alone.result.metrics) == set(trained["metrics"])


def test_killed_after_any_epoch_it_ends_with_identical_losses_and_metrics(alone, clip, workspace, tmp_path):
    def die_after(epoch):
        def on_report(facts):
            if facts["event"] == "epoch" and facts["epoch"] == epoch:
                raise KilledError

        return on_report

    for epoch in (1, 2):
        with pytest.raises(KilledError):
            small_run.alone(clip, workspace, runs=tmp_path, on_report=die_after(epoch))
        [journal] = tmp_path.glob("train/*/journal.jsonl")
        failed = Journal(journal).last("failed")
        assert (failed["error"], failed["detail"].splitlines()[-1].rpartition(".")[2]) == (
            "KilledError",
            "KilledError",
        )
    resumed = small_run.alone(clip, workspace, runs=tmp_path)
    assert resumed.result.resumed
    assert resumed.result.losses == alone.result.losses
    assert resumed.result.metrics == alone.result.metrics
    assert resumed.read_queries().equals(alone.read_queries())
    assert len(list(resumed.path.glob("checkpoint_*"))) == 2


def test_killed_between_its_last_test_and_its_result_it_is_not_tested_again(alone, clip, workspace, tmp_path):
    def die_when_tested(facts):
        if facts["event"] == "test":
            raise KilledError

    with pytest.raises(KilledError):
        small_run.alone(clip, workspace, runs=tmp_path, on_report=die_when_tested)
    concluded = small_run.alone(clip, workspace, runs=tmp_path)
    events = [event["event"] for event in concluded.journal.read()]
    assert events.count("test") == events.count("started") == 1
    assert concluded.result.metrics == alone.result.metrics
    assert concluded.read_queries().equals(alone.read_queries())


def test_last_test_that_is_repeated_from_its_own_checkpoint_counts_once(
    alone, clip, workspace, tmp_path, monkeypatch
):
    # As where the checkpoint was stored, and its report lost.
    path = shutil.copytree(alone.path, tmp_path / "train" / alone.name)
    (path / "result.json").unlink()
    journal = path / "journal.jsonl"
    journal.write_text(journal.read_text().replace(str(alone.path), str(path)))
    monkeypatch.setattr(RunFolder, "trained", False)
    repeated = small_run.alone(clip, workspace, runs=tmp_path)
    assert repeated.result.metrics == alone.result.metrics
    assert repeated.read_queries().equals(alone.read_queries())


def test_checkpoint_that_is_cut_off_is_not_taken_for_one(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    session = OwnProcessSession(run, 1, torch.device("cpu"), lambda facts: None)
    stored = tmp_path / "checkpoint_step_00000003"

    def store(step):
        session.report({"event": "epoch", "step": step}, made_up.checkpoint())
        session.wait()

    store(3)
    complete = {path.name: path.read_bytes() for path in stored.iterdir()}

    def write_one_file(checkpoint, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "write", write_one_file)
        for step in (3, 6):
            with pytest.raises(KilledError):
                store(step)
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == complete
    assert [event["step"] for event in run.journal.read()] == [3]
    assert not (tmp_path / "checkpoint_step_00000006").exists()
    store(6)
    again = tmp_path / "checkpoint_step_00000006"
    assert {path.name for path in again.iterdir()} == set(complete)


def test_finished_run_is_found_and_not_repeated(alone, clip, workspace):
    before = alone.journal.read()
    assert small_run.alone(clip, workspace, runs=alone.path.parents[1]).path == alone.path
    assert alone.journal.read() == before


def test_checkpoints_can_lie_elsewhere(alone, clip, workspace, tmp_path):
    storage = tmp_path / "elsewhere"
    folder = small_run.alone(clip, workspace, runs=tmp_path / "runs", storage=storage.as_uri())
    assert not list(folder.path.glob("checkpoint_*"))
    assert len(list((storage / folder.name).glob("checkpoint_*"))) == 2
    assert folder.result.metrics == alone.result.metrics


def test_average_precision_of_every_query_is_kept_and_its_mean_is_the_map(alone):
    table = alone.read_queries()
    assert set(table.column_names) == {*QUERY_SCHEMA.names, "epoch"}
    rows = table.to_pandas().groupby(["epoch", "feature"])["average_precision"].mean()
    assert set(rows.index.get_level_values("epoch")) == {0, 2, 3}
    for feature in FEATURES:
        assert rows[3, feature] == pytest.approx(alone.result.metrics[feature].mean_average_precision)
    assert rows[0, "U"] == pytest.approx(alone.result.untrained.mean_average_precision)


def test_diverging_run_stops_at_once_and_says_why(ray_session, clip, workspace):
    with pytest.raises(StoppedError, match="the loss of epoch 1, or its gradient, is not finite"):
        small_run.alone(clip, workspace, "optim.learning_rate=1e30", "optim.gradient_clip=0")


@pytest.mark.slow
def test_text_tower_is_trained_when_asked_for(ray_session, capsys, clip, workspace):
    tuned = small_run.alone(clip, workspace, "model.text.fine_tune=on", "train.epochs=1")
    capsys.readouterr()
    assert evaluate.main(["--run", str(tuned.path), "--json"]) == 0
    (setting,) = json.loads(capsys.readouterr().out)["settings"]
    assert setting["metrics"]["T"]["mAP"] == pytest.approx(
        tuned.result.metrics["T"].mean_average_precision, abs=0.02
    )


def test_trial_of_one_worker_holds_a_processor_and_one_of_several_holds_none(ray_session):
    assert trial.trial_resources(1).required_resources == {"CPU": 1.0}
    assert trial.trial_resources(2).required_resources == {trial.HEAD_NODE: 0.001}
    assert [trial.concurrent_trials(workers) for workers in (1, 2, 3)] == [2, 1, 1]


def test_trials_share_gpus_as_gpus_per_worker_says(monkeypatch):
    machine = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [machine, machine, {"Alive": False, "Resources": {"GPU": 9.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 4.0})
    held = [trial.trial_resources(1, gpus).required_resources for gpus in (None, 0.5, 0)]
    assert held == [{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 0.5}, {"CPU": 1}]
    assert [trial.concurrent_trials(1, gpus) for gpus in (None, 0.5, 0)] == [4, 8, 16]
    assert [trial.concurrent_trials(2, gpus) for gpus in (None, 0.5, 0)] == [2, 4, 8]
    with pytest.raises(RunError, match="with 2 GPUs each, but the cluster has 4 GPUs"):
        trial.concurrent_trials(4, 2)
    # A worker's share is of one GPU: four GPUs hold four of 0.6 each, not six.
    assert trial.concurrent_trials(4, 0.6) == 1
    with pytest.raises(RunError, match=r"train.workers=5 with 0\.6 GPUs each"):
        trial.concurrent_trials(5, 0.6)


def test_trial_is_tried_again_only_where_another_process_has_its_run(monkeypatch):
    """A trial whose run failed too often, or stopped itself, is not tried again."""
    reports = []
    own = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: own)
    monkeypatch.setattr(trial.tune, "report", reports.append)
    config = {"config": resolve("demo").model_dump(mode="json")}

    def end_with(error):
        def run(*given, **options):
            raise error

        monkeypatch.setattr(lifecycle, "run", run)
        trial.train_trial(config, tables=None, options=SimpleNamespace(study=None))

    end_with(RunError("the workers failed"))
    end_with(StoppedError("the loss is nan"))
    assert reports == [{"failed": "the workers failed"}, {"stopped": "the loss is nan"}]
    # Others would wait for the storage as long again, each in turn.
    end_with(StorageAwayError("s3://lab has not answered"))
    stop = trial.StopWithoutStorage()
    assert not any(stop(f"trial {number}", report) for number, report in enumerate(reports[:2]))
    assert not stop.stop_all()
    assert reports[2]["failed"] == "s3://lab has not answered"
    assert stop("trial 2", reports[2])
    assert stop.stop_all()
    with pytest.raises(BusyError):
        end_with(BusyError("another process has it"))


def test_process_that_trains_a_run_is_waited_for_while_it_makes_progress(alone, clip, workspace, tmp_path):
    run = RunFolder(shutil.copytree(alone.path, tmp_path / "train" / alone.name))
    claimed = threading.Event()

    def make_progress():
        with claim(run.path):
            claimed.set()
            for number in range(8):
                time.sleep(0.1)
                run.journal.append("progress", number=number)

    thread = threading.Thread(target=make_progress)
    thread.start()
    claimed.wait()
    small_run.alone(clip, workspace, runs=tmp_path, patience_seconds=0.4)
    assert run.journal.last("progress")["number"] == 7
    thread.join()
    with claim(run.path), pytest.raises(BusyError, match="is being trained by another process"):
        small_run.alone(clip, workspace, runs=tmp_path, patience_seconds=0.2)
