import json

import pytest
import torch

from experiments.recipes import resolve
from experiments.run import run_result
from experiments.run.run_folder import RunFolder
from experiments.run.session import OwnProcessSession


def looked_at(epoch, **precision):
    metrics = {name: {"mAP": value, "rank1": value} for name, value in precision.items()}
    return {"epoch": epoch, "losses": {}, "seconds": {}, "validation": metrics, "test": metrics}


@pytest.fixture
def folder(tmp_path):
    """A run whose U and G are best at different epochs."""
    run = RunFolder(tmp_path)
    config = resolve("demo", ["report.epoch=best_on_test"]).model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "tables": {}}))
    run.journal.append("epoch", **looked_at(1, U=0.3, G=0.6))
    run.journal.append("epoch", **looked_at(2, U=0.5, G=0.4))
    last = looked_at(3, U=0.4, G=0.5)
    run.journal.append("epoch", **{name: value for name, value in last.items() if name != "test"})
    run.journal.append("test", epochs=3, metrics=last["test"])
    return run


@pytest.mark.parametrize(("feature", "epoch"), [("U", 2), ("G", 1)])
def test_every_feature_chooses_its_own_epochs(folder, feature, epoch):
    choices = run_result.choices_of(folder, feature)
    assert {choice: of["epoch"] for choice, of in choices.items()} == {
        "last": 3,
        "validation": epoch,
        "best_on_test": epoch,
    }


def test_clock_of_the_workers_may_be_behind():
    events = [
        {"event": "started", "time": 100.0},
        {"event": "untrained", "time": 95.0, "began": 90.0, "seconds": {"evaluation": 2.0}},
        {"event": "epoch", "time": 99.0, "began": 90.0, "seconds": {"steps": 3.0}},
    ]
    seconds = run_result._seconds(events)
    assert (seconds["workers"], seconds["steps"]) == (9.0, 3.0)
    assert seconds["share_in_steps_and_evaluation"] == pytest.approx(5 / 9)


def test_checkpoint_that_was_lost_and_made_again_is_kept_as_a_new_one(folder, tmp_path):
    def place(step):
        return str(tmp_path / f"checkpoint_epoch_{step:08d}")

    for step in (2, 4, 6):
        folder.journal.record({"event": "epoch", "step": step}, place(step))
    session = OwnProcessSession(folder, str(tmp_path), 1, torch.device("cpu"), lambda facts: None)
    (tmp_path / "new").mkdir()
    for step in (2, 4):
        session.report({"event": "epoch", "step": step}, tmp_path / "new")
        assert folder.last_checkpoint == place(step)
    assert len(list(tmp_path.glob("checkpoint_*"))) == 2
