"""Faults on trainings of seconds, by the command that users have."""

import json

import pytest

from experiments import chaos
from experiments.command_line import USAGE_STATUS
from tests.experiments import small_run

EPOCHS = ["--set", "train.epochs=32"]
"""Enough that all faults come, and are noticed, before the last."""


@pytest.mark.fault
@pytest.mark.slow
def test_run_with_a_lost_or_slow_worker_or_a_lost_head_ends_as_undisturbed(
    ray_session, clip, workspace, capsys
):
    options = ["--workers", "2", *EPOCHS]
    # Trained here, the undisturbed run is found: Ray has been started.
    undisturbed = small_run.run(capsys, clip, workspace, *options)
    faults = ["--fault", "worker", "node", "head", "slow", "--kills", "1"]
    assert chaos.main([*small_run.arguments(clip, workspace, *options), *faults]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["undisturbed"] == undisturbed["run"]
    worker, node, head, slow = report["outcomes"]
    assert "needs a cluster of two or more nodes" in node["not_tried"]
    for outcome in (worker, head, slow):
        # Of a slow worker that the journal does not name, the name is lost.
        assert outcome["lost"] == []
        assert outcome["equal_weights"]
        assert outcome["not_tried"] is outcome["kept"] is None
    for outcome in (worker, head):
        assert len(outcome["seconds_until_training"]) == 1
        assert outcome["seconds_until_training"][0] > 0
    assert [outcome["starts"] for outcome in (worker, head, slow)] == [1, 2, 1]
    assert not list(workspace.glob("chaos-*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--kills", "0"], "--kills=0: expected 1 to train.epochs=4"),
        (["--storage", "/elsewhere"], "--storage=/elsewhere: every run is a new one"),
        (["--resume"], "--resume: every run is a new one"),
        (["--set", "train.epochz=2"], "did you mean train.epochs"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_starts(given, message, tmp_path, capsys):
    assert chaos.main(["--workspace", str(tmp_path), *given]) == USAGE_STATUS
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
