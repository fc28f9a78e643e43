"""Faults on trainings of seconds, by the command that users have."""

import json

import pytest

from experiments import chaos
from experiments.command_line import USAGE_STATUS
from experiments.faults import fault_report
from experiments.faults.fault_report import FaultReport
from experiments.faults.faults import FAULTS
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
    ("given", "kills", "is_elastic"),
    [([], 5, False), (["--workers", "4", "--end-node"], 5, False), (["--workers", "2-4"], 5, True)],
)
def test_the_bare_command_and_those_of_the_readme_are_taken(
    given, kills, is_elastic, tmp_path, monkeypatch, capsys
):
    asked = []

    def try_faults(names, plan, *callbacks):
        asked.append((names, plan))
        return FaultReport(undisturbed="run", workers=1, steps=8, is_exact=True, outcomes=())

    monkeypatch.setattr(fault_report, "try_faults", try_faults)
    assert chaos.main(["--workspace", str(tmp_path), *given]) == 0
    [(names, plan)] = asked
    assert tuple(names) == chaos.FAULTS == tuple(sorted(FAULTS, key=chaos.FAULTS.index))
    assert (plan.kills, plan.is_elastic, plan.may_end_nodes) == (kills, is_elastic, "--end-node" in given)
    assert "train.epochs=8" in plan.options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--kills", "0"], "--kills=0: expected 1 to 5 with train.epochs=8"),
        (["--kills", "6"], "--kills=6: expected 1 to 5 with train.epochs=8; kill less often, or train more"),
        (["--set", "train.epochs=4"], "--kills=5: expected 1 to 2 with train.epochs=4"),
        (["--storage", "/elsewhere"], "--storage=/elsewhere: every run is a new one"),
        (["--resume"], "--resume: every run is a new one"),
        (["--set", "train.epochz=2"], "did you mean train.epochs"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_starts(given, message, tmp_path, capsys):
    assert chaos.main(["--workspace", str(tmp_path), *given]) == USAGE_STATUS
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
