"""A run on Ray Train's workers that is stopped or killed, and what the same command makes of its folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.command_line import COME_AGAIN_STATUS
from experiments.evaluating.run_differences import find_differences
from experiments.evaluating.verification import step_losses
from experiments.run.run_folder import RunFolder
from tests import kept_workspace
from tests.experiments import small_run
from tests.kept_workspace import CLIP
from tests.tolerances import ROUNDING_FLOAT32

SETTINGS = ("train.epochs=20", "train.checkpoint_steps=1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One whose tables are there: to make them takes Ray."""
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


def command(workspace, runs, *changes):
    """The small run on two workers, with its tables from a workspace and its folder in another one."""
    settings = [part for text in changes for part in ("--set", text)]
    catalog = ["--catalog", str(workspace / "catalog")]
    return [sys.executable, "experiments/train.py", *small_run.arguments(CLIP, runs), *settings, *catalog]


def start_until_stored(given, runs, checkpoints):
    """Start a run, and wait until it has stored some checkpoints; returns its process and its folder."""
    process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True)
    while len(stored := list(runs.glob("train/*/checkpoint_*/SHA256SUMS"))) < checkpoints:
        assert process.poll() is None
        time.sleep(0.1)
    return process, RunFolder(stored[0].parents[1])


@pytest.mark.slow
def test_killed_run_goes_on_with_as_many_workers_as_there_is_room_for(workspace, tmp_path):
    """It trains what one that keeps its two workers does, within rounding."""
    # In few and small steps rounding does not grow.
    changes = ("train.epochs=6", "train.checkpoint_steps=1", "optim.learning_rate=0.00001")
    given = [*command(workspace, tmp_path, *changes), "--workers", "1-2"]
    process, folder = start_until_stored(given, tmp_path, 2)
    process.kill()
    process.communicate()
    processor = str(min(os.sched_getaffinity(0)))
    resumed = subprocess.run(
        ["taskset", "-c", processor, *given], capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    starts = [event for event in folder.journal.read() if "processes" in event]
    assert [len(start["processes"]) for start in starts] == [2, 1]
    assert starts[1]["step"] > 0

    given[given.index(str(tmp_path))] = str(tmp_path / "undisturbed")
    subprocess.run(given, capture_output=True, check=True)
    undisturbed = RunFolder(tmp_path / "undisturbed" / "train" / folder.name)
    expected = step_losses(undisturbed.journal)
    assert len(expected) > starts[1]["step"]
    assert step_losses(folder.journal) == pytest.approx(expected, rel=ROUNDING_FLOAT32)
    for feature, metrics in undisturbed.finished_result.metrics.items():
        value = folder.finished_result.metrics[feature].mean_average_precision
        assert value == pytest.approx(metrics.mean_average_precision, abs=1e-3), feature


@pytest.mark.slow
def test_run_goes_on_from_its_newest_sound_checkpoint_whatever_ray_train_has_noted(workspace, tmp_path):
    """Ray Train's own record names the newest checkpoint, sound or not, and may be cut off itself."""
    given = command(workspace, tmp_path, *SETTINGS)
    process, folder = start_until_stored(given, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=120)
    assert process.returncode == COME_AGAIN_STATUS, message
    stopped = folder.journal.find("interrupted")["step"]
    newest = folder.last_checkpoint
    before = {path.name for path in folder.path.glob("checkpoint_*") if path.is_dir()}

    (folder.path / "checkpoint_manager_snapshot.json").write_text('{"ray_version"')
    Path(newest, "training.pt").write_bytes(b"")
    resumed = subprocess.run(given, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{newest} is damaged (training.pt is cut off" in resumed.stderr
    [start] = [event for event in folder.journal.read() if event["event"] == "resumed"]
    assert start["step"] < stopped
    # Only the newest two are kept, those of the first start included.
    after = {path.name for path in folder.path.glob("checkpoint_*") if path.is_dir()}
    assert len(after) == 2
    assert not before & after
    given[given.index(str(tmp_path))] = str(tmp_path / "undisturbed")
    subprocess.run(given, capture_output=True, check=True)
    undisturbed = RunFolder(tmp_path / "undisturbed" / "train" / folder.name)
    assert find_differences(folder, undisturbed) == ()
