import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import ablate, sweep_sfm

ROOT = Path(__file__).parents[3]


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
