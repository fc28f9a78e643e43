import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import tune
from ray.exceptions import ActorDiedError
from ray.tune import TuneError

from experiments import ablate, sweep_sfm
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import RunError
from experiments.studies import tuning
from experiments.studies.study_logger import StudyRun
from tests.data_catalog.test_ray_failures import KILLED, SHORT_OF_MEMORY, died
from tests.experiments import made_up, small_run

ROOT = Path(__file__).parents[3]


FINISHED = SimpleNamespace(error=None, metrics={"finished": True})


def runs_of(folder, config, tables):
    """Two runs of an ablation."""
    return [
        StudyRun(RunFolder.of(folder, config.model_copy(update={"seed": seed}), tables), f"seed {seed}")
        for seed in (0, 1)
    ]


def test_run_whose_result_is_on_another_disk_is_wrong_with_a_reason(
    ray_session, clip, workspace, tmp_path, monkeypatch
):
    config, tables = small_run.configured(clip, workspace)
    runs = runs_of(tmp_path, config, tables)

    def train_elsewhere(*given, **more):
        """Both runs are finished, the first one on the disk of another node."""
        runs[1].folder.write_result(made_up.run_result())
        finished = {"finished": True, "hostname": "far", "node_ip": "10.0.0.2"}
        return [SimpleNamespace(error=None, metrics=finished)] * 2

    monkeypatch.setattr(tuning, "tune_trials", train_elsewhere)
    study = made_up.study_folder(tmp_path)
    wrong = tuning.train_runs(runs, tables, RunOptions.resolve(tmp_path), study)
    assert list(wrong) == [runs[0].folder.name]
    reason = wrong[runs[0].folder.name]
    assert "trained on node far (10.0.0.2)" in reason
    assert "--workspace s3://bucket/runs" in reason


@pytest.mark.parametrize("times", [1, tuning.STARTS - 1, tuning.STARTS])
def test_only_runs_that_a_lost_node_took_along_are_started_again_but_not_forever(
    times, ray_session, clip, workspace, tmp_path, monkeypatch
):
    config, tables = small_run.configured(clip, workspace)
    runs = runs_of(tmp_path, config, tables)
    started = []

    def train(*given, param_space):
        """The first run finishes; the other one is lost with its node at the first starts."""
        seeds = [values["seed"] for values in param_space["config"]["grid_search"]]
        started.append(seeds)
        is_lost = len(started) <= times
        for seed in set(seeds) - ({1} if is_lost else set()):
            runs[seed].folder.write_result(made_up.run_result())
        lost = SimpleNamespace(error=tuning.NodeLostError("its process was lost"), metrics={})
        return [lost if seed and is_lost else FINISHED for seed in seeds]

    monkeypatch.setattr(tuning, "tune_trials", train)
    study = made_up.study_folder(tmp_path)
    wrong = tuning.train_runs(runs, tables, RunOptions.resolve(tmp_path), study)
    assert started == [[0, 1], *[[1]] * min(times, tuning.STARTS - 1)]
    assert wrong == ({runs[1].folder.name: "its process was lost"} if times == tuning.STARTS else {})


@pytest.mark.parametrize(
    ("nodes", "seconds", "is_lost"),
    [
        # Ray knows of the lost node a moment later.
        (["12", "12", "13"], 60.0, True),
        (["12", "123"], 0.0, False),
    ],
)
def test_dead_process_of_a_trial_is_lost_with_a_node_where_the_cluster_lost_one(
    nodes, seconds, is_lost, ray_session, clip, workspace, tmp_path, monkeypatch
):
    tables = small_run.configured(clip, workspace)[1]
    errors = [ActorDiedError(), ValueError("wrong")]
    living = ({node: f"node-{node}" for node in ids} for ids in nodes)
    monkeypatch.setattr(tuning, "living_nodes", living.__next__)
    monkeypatch.setattr(tuning, "NODE_LOSS_SECONDS", seconds)
    monkeypatch.setattr(tune.Tuner, "fit", lambda self: [SimpleNamespace(error=error) for error in errors])
    study = made_up.study_folder(tmp_path)
    outcomes = tuning.tune_trials(tables, RunOptions.resolve(tmp_path), study, workers=1)
    assert isinstance(outcomes[0].error, tuning.NodeLostError) == is_lost
    assert ("the cluster lost node-2;" in str(outcomes[0].error)) == is_lost
    assert outcomes[1].error is errors[1]


def test_trial_that_was_killed_is_wrong_with_a_reason_and_an_event_of_its_study(
    ray_session, clip, workspace, tmp_path, monkeypatch
):
    config, tables = small_run.configured(clip, workspace)
    run = StudyRun(RunFolder.of(tmp_path, config, tables), "seed 0")
    short = ray.exceptions.OutOfMemoryError(SHORT_OF_MEMORY)
    monkeypatch.setattr(tuning, "tune_trials", lambda *given, **more: [SimpleNamespace(error=short)])
    study = made_up.study_folder(tmp_path)
    wrong = tuning.train_runs([run], tables, RunOptions.resolve(tmp_path), study)
    reason = wrong[run.folder.name]
    assert "memory of the node ran out" in reason
    assert "lower batch.size" in reason
    event = study.journal.last("failed")
    assert (event["run"], event["error"]) == (run.folder.name, reason)


@pytest.mark.parametrize(
    "error", [TuneError("Traceback (most recent call last):\n  x\nE: full"), died(KILLED)]
)
def test_study_whose_tune_ends_says_so_in_one_line(error, ray_session, tmp_path, monkeypatch):
    def end(tuner):
        raise error

    monkeypatch.setattr(tune.Tuner, "fit", end)
    study = made_up.study_folder(tmp_path)
    with pytest.raises(RunError) as ended:
        tuning.tune_trials(None, RunOptions.resolve(tmp_path), study, 1)
    message = str(ended.value)
    assert message.startswith("study s cannot go on (")
    assert "\n" not in message
    assert "run the same command again" in message


@pytest.mark.parametrize("script", [ablate, sweep_sfm])
def test_study_that_needs_more_gpus_than_there_are_is_refused_before_it_begins(
    script, ray_session, tmp_path, capsys
):
    asked = ["--table", "3"] if script is ablate else []
    assert script.main([*asked, "--gpus-per-worker", "1", "--workspace", str(tmp_path)]) == 2
    assert "with 1 GPUs each, but the cluster has 0 GPUs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_trial_of_two_workers_that_is_stopped_early_leaves_all_cpus_free(
    ray_session, clip, workspace, tmp_path
):
    script = [sys.executable, "-m", "tests.experiments.studies.pruned_trial"]
    subprocess.run([*script, str(clip), str(workspace), str(tmp_path)], cwd=ROOT, check=True)
    left = json.loads((tmp_path / "left.json").read_text())
    assert left["free"] == left["cpus"]
    assert left["epochs_later"] == left["epochs"] < left["asked"]
