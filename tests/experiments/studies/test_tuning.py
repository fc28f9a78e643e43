import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import ablate, sweep_sfm
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.studies import tuning
from experiments.studies.study_folder import StudyFolder
from experiments.studies.study_logger import StudyRun
from tests.experiments import made_up, small_run

ROOT = Path(__file__).parents[3]


def test_run_whose_result_is_on_another_disk_is_wrong_with_a_reason(
    ray_session, clip, workspace, tmp_path, monkeypatch
):
    config, tables = small_run.configured(clip, workspace)
    runs = [
        StudyRun(RunFolder.of(tmp_path, config.model_copy(update={"seed": seed}), tables), f"seed {seed}")
        for seed in (0, 1)
    ]

    def train_elsewhere(*given, **more):
        """Both runs are finished, the first one on the disk of another node."""
        runs[1].folder.write_result(made_up.run_result())
        finished = {"finished": True, "hostname": "far", "node_ip": "10.0.0.2"}
        return [SimpleNamespace(error=None, metrics=finished)] * 2

    monkeypatch.setattr(tuning, "tune_trials", train_elsewhere)
    study = StudyFolder.of(tmp_path, "s")
    wrong = tuning.train_runs(runs, tables, RunOptions.resolve(tmp_path), study)
    assert list(wrong) == [runs[0].folder.name]
    reason = wrong[runs[0].folder.name]
    assert "trained on node far (10.0.0.2)" in reason
    assert "--workspace s3://bucket/runs" in reason


@pytest.mark.parametrize("script", [ablate, sweep_sfm])
def test_study_that_needs_more_gpus_than_there_are_is_refused_before_it_begins(
    script, ray_session, tmp_path, capsys
):
    asked = ["--table", "3"] if script is ablate else []
    assert script.main([*asked, "--gpus-per-worker", "1", "--workspace", str(tmp_path)]) == 2
    assert "with 1 GPUs each, but the cluster has 0 GPUs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_trial_of_two_workers_that_is_stopped_early_leaves_all_cpus_free(
    ray_session, clip, workspace, tmp_path
):
    script = [sys.executable, "-m", "tests.experiments.studies.pruned_trial"]
    subprocess.run([*script, str(clip), str(workspace), str(tmp_path)], cwd=ROOT, check=True)
    left = json.loads((tmp_path / "left.json").read_text())
    assert left["free"] == left["cpus"]
    assert left["epochs_later"] == left["epochs"] < left["asked"]
