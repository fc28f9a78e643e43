import json

import pytest
import torch

from experiments import verify_run
from experiments.command_line import USAGE_STATUS
from experiments.run.workers.batch_input import BatchInput
from tests import kept_workspace
from tests.experiments import small_run
from tests.kept_workspace import CLIP

STEPS = 4
"""In the second epoch of the small run."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One whose tables are there: to make them takes Ray."""
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def recorded(workspace, tmp_path_factory):
    return small_run.alone(CLIP, workspace, "train.checkpoint_steps=2", runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture
def verify(capsys, recorded):
    """Verifies a run whose journal was changed, and gives the exit status and what was printed."""
    written = recorded.path.joinpath("journal.jsonl").read_text()

    def call(change=lambda text: text, *options):
        (recorded.path / "journal.jsonl").write_text(change(written))
        capsys.readouterr()
        workspace = str(recorded.path.parents[1])
        status = verify_run.main([str(recorded.path), "--workspace", workspace, "--json", *options])
        assert not [path for path in recorded.path.parents[1].iterdir() if path.name.startswith(".verif")]
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else captured.err

    yield call
    (recorded.path / "journal.jsonl").write_text(written)


def changed(text, event, change):
    """A journal with the events of a kind changed."""
    lines = [json.loads(line) for line in text.splitlines()]
    return "".join(json.dumps(change(line) if line["event"] == event else line) + "\n" for line in lines)


def test_run_comes_out_as_recorded(verify):
    status, result = verify(lambda text: text, "--steps", str(STEPS))
    assert status == 0
    assert result["verified"]
    assert (result["steps"], result["equal_losses"], result["largest_difference"]) == (STEPS, STEPS, 0)
    assert result["weights"] == {"2": True, "3": True, "4": True}
    assert result["first_difference"] is None
    assert result["notes"] == []


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_repetition_takes_deterministic_algorithms_where_the_run_did(verify, monkeypatch, is_deterministic):
    seen = []
    original = BatchInput.steps

    def steps(*given):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return original(*given)

    monkeypatch.setattr(BatchInput, "steps", steps)

    def change(text):
        return changed(text, "started", lambda event: event | {"deterministic": is_deterministic})

    assert verify(change, "--steps", "2")[0] == 0
    assert set(seen) == {is_deterministic}


def test_first_difference_is_named_whether_in_a_loss_or_in_the_weights(verify):
    def other_loss(event):
        if event["epoch"] == 1:
            event["step_losses"][2] *= 1.5
        return event

    def other_weights(event):
        return event | ({"weights": "0" * 64} if event["step"] == 2 else {})

    def both(text):
        return changed(changed(text, "epoch", other_loss), "checkpoint", other_weights)

    status, result = verify(both, "--steps", "3")
    assert status == 1
    assert not result["verified"]
    assert result["equal_losses"] == 2
    assert result["largest_difference"] == pytest.approx(1 / 3)
    assert result["weights"] == {"2": False, "3": True}
    first = result["first_difference"]
    assert (first["step"], first["what"], first["recorded"]) == (2, "weights", "0" * 64)


@pytest.mark.parametrize("steps", ["0", "8"])
def test_steps_that_are_not_on_record_are_refused(verify, steps):
    status, error = verify(lambda text: text, "--steps", steps)
    assert status == USAGE_STATUS
    assert error.startswith(f"error: --steps={steps}: expected 1 to 7, for run demo-seed0-")
    assert "has that many on record" in error


def test_only_the_steps_before_the_number_of_workers_changed_are_repeated(verify):
    def grown(text):
        event = {
            "event": "resumed",
            "time": 0.0,
            "step": 3,
            "processes": [{"host": "a", "pid": 1}, {"host": "b", "pid": 2}],
        }
        return text + json.dumps(event) + "\n"

    assert verify(grown, "--steps", "3")[0] == 0
    status, error = verify(grown, "--steps", "4")
    assert status == USAGE_STATUS
    assert "--steps=4: expected 1 to 3, for run demo-seed0-" in error
    assert "went on with 2 workers then" in error


def test_run_of_an_older_version_is_refused(verify):
    def older(event):
        return {name: value for name, value in event.items() if name not in ("threads", "workers")}

    status, error = verify(lambda text: changed(text, "untrained", older))
    assert status == USAGE_STATUS
    assert "has no record of the loss of each step" in error


def test_folder_without_a_run_is_refused(capsys, tmp_path):
    assert verify_run.main([str(tmp_path)]) == USAGE_STATUS
    assert "is no run's folder" in capsys.readouterr().err


def test_notes_name_other_code_and_another_machine(verify):
    def elsewhere(event):
        return event | {"code.digest": "0123abcd", "environment": event["environment"] | {"processors": 96}}

    status, result = verify(lambda text: changed(text, "started", elsewhere), "--steps", "1")
    assert status == 0
    assert result["notes"][0] == "other code trained it (digest 0123abcd)"
    assert result["notes"][1].startswith("processors was 96, is ")
