"""The examples of a recipe and of an ablation row, called from the project's folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.command_line import EXAMPLES, ROOT, call, read_json


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ablation_row.sh` leaves."""
    folder = tmp_path_factory.mktemp("workspace")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    done = subprocess.run(
        ["bash", EXAMPLES / "ablation_row.sh"],
        cwd=ROOT,
        env=kept | {"PATH": path, "STMI_WORKSPACE": str(folder), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "K = 4" in done.stdout
    return folder


@pytest.mark.slow
def test_row_is_compared_with_the_full_model_of_the_recipe(workspace: Path) -> None:
    [study] = (workspace / "studies").iterdir()
    assert study.name.startswith("small_recipe-rows-2seeds-")
    result = json.loads((study / "result.json").read_text())
    full, row = result["rows"]
    assert (full["name"], row["name"], row["mAP"]["against"]) == ("full model", "K = 4", "full model")
    assert (full["config"], row["config"]) == ({}, {"model.str.tokens": 4})
    means = [sum(one["mAP"]["values"].values()) / 2 for one in (full, row)]
    assert row["mAP"]["difference"] == pytest.approx(means[1] - means[0])
    for one, tokens in ((full, 2), (row, 4)):
        for seed, run in one["runs"].items():
            config = json.loads((workspace / "train" / run / "config.json").read_text())["config"]
            assert run.startswith(f"small_recipe-seed{seed}-")
            assert (config["recipe"], config["model"]["str"]["tokens"]) == ("small_recipe", tokens)


@pytest.mark.slow
def test_recipe_of_a_file_finds_the_run_that_the_study_trained(workspace: Path) -> None:
    [study] = (workspace / "studies").iterdir()
    full = json.loads((study / "result.json").read_text())["rows"][0]
    script, recipe = ROOT / "experiments" / "train.py", EXAMPLES / "small_recipe.yaml"
    arguments = (script, "--recipe", recipe, "--workspace", workspace, "--json")
    found = read_json(call(*arguments, folder=workspace))
    assert (found["run"], found["reused"]) == (full["runs"]["0"], True)
