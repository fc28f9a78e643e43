import json

import pytest
import torch

from data_catalog.errors import DamagedFileError
from experiments.report import RunReport
from experiments.run import conclusion
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import Hyperedges
from experiments.run.workers.session import OwnProcessSession
from tests import json_samples
from tests.experiments import made_up


def looked_at(epoch, **precision):
    metrics = {name: made_up.metrics(value) for name, value in precision.items()}
    return {"epoch": epoch, "losses": {}, "seconds": {}, "validation": metrics, "test": metrics}


@pytest.fixture
def folder(tmp_path):
    """A run whose U and G are best at different epochs."""
    run = RunFolder(tmp_path)
    made_up.write_config(run, "report.epoch=best_on_test")
    run.journal.append("epoch", **looked_at(1, U=0.3, G=0.6))
    run.journal.append("epoch", **looked_at(2, U=0.5, G=0.4))
    last = looked_at(3, U=0.4, G=0.5)
    run.journal.append("epoch", **{name: value for name, value in last.items() if name != "test"})
    run.journal.append("test", epochs=3, metrics=last["test"])
    return run


@pytest.mark.parametrize(("feature", "epoch"), [("U", 2), ("G", 1)])
def test_every_feature_chooses_its_own_epochs(folder, feature, epoch):
    choices = conclusion.find_choices(folder, feature)
    assert {choice: epoch_metrics.epoch for choice, epoch_metrics in choices} == {
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
    seconds = conclusion.seconds_by_part(events)
    assert (seconds["workers"], seconds["steps"]) == (9.0, 3.0)
    assert seconds["share_in_steps_and_evaluation"] == pytest.approx(5 / 9)


def test_checkpoint_that_was_lost_and_made_again_is_kept_as_a_new_one(folder, tmp_path):
    def location(step):
        return str(tmp_path / f"checkpoint_step_{step:08d}")

    for step in (2, 4, 6):
        folder.journal.record({"event": "epoch", "step": step}, location(step))
    session = OwnProcessSession(folder, 1, torch.device("cpu"), lambda facts: None)
    for step in (2, 4):
        session.report({"event": "epoch", "step": step}, made_up.checkpoint())
        session.wait()
        assert folder.last_checkpoint == location(step)
    assert len(list(tmp_path.glob("checkpoint_*"))) == 2


@pytest.mark.parametrize(
    ("density", "alone", "words"),
    [
        (21 / 225, 1.0, "each is alone in"),
        (0.96, 0.0, "holds nearly all"),
        (0.95, 0.98, None),
    ],
)
def test_hypergraph_that_does_nothing_is_named_with_its_numbers(density, alone, words):
    facts = Hyperedges(size=15 * density, density=density, alone=alone, across=0.0, by_text=0.2)
    if words is None:
        assert facts.warning is None
        return
    assert facts.warning.startswith("chi-degenerate: ")
    assert words in facts.warning
    assert f"{15 * density:.1f} nodes (density {density:.3f}), {alone:.0%} of the tokens" in facts.warning


def test_each_data_set_on_which_the_hypergraph_does_nothing_is_named():
    facts = {"size": 3.0, "density": 0.2, "alone": 0.0, "across": 0.0, "by_text": 0.2}
    hyperedges = {"test": facts, "validation/vehicles": facts | {"alone": 1.0}, "test/vehicles": facts}
    assert conclusion.hyperedge_warning(made_up.run_result(hyperedges=hyperedges)) is None
    hyperedges["test/vehicles"] = facts | {"alone": 1.0}
    warning = conclusion.hyperedge_warning(made_up.run_result(hyperedges=hyperedges))
    assert warning.startswith("vehicles: chi-degenerate: CHI mixes no tokens")


@pytest.mark.parametrize("name", ["train", "report"])
def test_printed_result_keeps_its_keys(name):
    json_samples.check(name, RunReport)


def test_result_of_an_older_version_is_read(tmp_path):
    sample = json.loads((json_samples.FOLDER / "train.json").read_text())
    later = ("choices", "reported", "paper")
    (tmp_path / "result.json").write_text(
        json.dumps({name: value for name, value in sample.items() if name not in later})
    )
    result = RunFolder(tmp_path).result
    assert (result.run, result.choices, result.reported) == (sample["run"], None, None)


def test_stored_result_is_read_back_as_it_was(tmp_path):
    result = made_up.run_result()
    folder = RunFolder(tmp_path)
    folder.write_result(result)
    assert folder.result == result.model_copy(update={"folder": str(tmp_path)})
    for content in ("{}", "{"):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(DamagedFileError, match=r"result\.json is damaged"):
            _ = RunFolder(tmp_path).result


def test_finished_runs_whose_hypergraphs_do_nothing_are_counted(tmp_path):
    facts = {"size": 1.4, "density": 0.093, "alone": 1.0, "across": 0.0, "by_text": 0.2}
    folders = [RunFolder(tmp_path / name) for name in ("alone", "older", "begun")]
    for folder, hyperedges in zip(folders, ({"test": facts}, {}), strict=False):
        folder.write_result(made_up.run_result(hyperedges=hyperedges))
    [sentence] = conclusion.degenerate_runs(folders)
    assert sentence.startswith("1 of 2 finished runs: chi-degenerate: ")
    assert conclusion.degenerate_runs(folders[1:]) == ()
