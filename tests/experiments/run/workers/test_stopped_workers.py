"""A run on Ray Train's workers that is stopped by SIGTERM, and what the same command makes of its folder."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.command_line import COME_AGAIN_STATUS
from experiments.evaluating.run_differences import find_differences
from experiments.run.run_folder import RunFolder
from tests import kept_workspace
from tests.experiments import small_run
from tests.kept_workspace import CLIP

SETTINGS = ("train.epochs=20", "train.checkpoint_steps=1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One whose tables are there: to make them takes Ray."""
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


@pytest.mark.slow
def test_run_goes_on_from_its_newest_sound_checkpoint_whatever_ray_train_has_noted(workspace, tmp_path):
    """Ray Train's own record names the newest checkpoint, sound or not, and may be cut off itself."""
    changes = [part for text in SETTINGS for part in ("--set", text)]
    catalog = ["--catalog", str(workspace / "catalog")]
    command = [
        sys.executable,
        "experiments/train.py",
        *small_run.arguments(CLIP, tmp_path),
        *changes,
        *catalog,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(stored := list(tmp_path.glob("train/*/checkpoint_*/SHA256SUMS"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=120)
    assert process.returncode == COME_AGAIN_STATUS, message
    folder = RunFolder(stored[0].parents[1])
    stopped = folder.journal.find("interrupted")["step"]
    newest = folder.last_checkpoint
    before = {path.name for path in folder.path.glob("checkpoint_*") if path.is_dir()}

    (folder.path / "checkpoint_manager_snapshot.json").write_text('{"ray_version"')
    Path(newest, "training.pt").write_bytes(b"")
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{newest} is damaged (training.pt is cut off" in resumed.stderr
    [start] = [event for event in folder.journal.read() if event["event"] == "resumed"]
    assert start["step"] < stopped
    # Only the newest two are kept, those of the first start included.
    after = {path.name for path in folder.path.glob("checkpoint_*") if path.is_dir()}
    assert len(after) == 2
    assert not before & after
    command[command.index(str(tmp_path))] = str(tmp_path / "undisturbed")
    subprocess.run(command, capture_output=True, check=True)
    undisturbed = RunFolder(tmp_path / "undisturbed" / "train" / folder.name)
    assert find_differences(folder, undisturbed) == ()
