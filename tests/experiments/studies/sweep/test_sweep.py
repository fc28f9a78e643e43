"""A sweep whose trials are made up: what is left behind by those that crash, or are killed."""

import json
from types import SimpleNamespace

import pytest

from experiments import sweep_sfm
from experiments.experiment_config import ReportConfig
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.studies.study_folder import StudyFolder
from experiments.studies.sweep import sweep as sweeping
from experiments.studies.sweep.search_space import make_space
from experiments.studies.sweep.sweep_spec import SweepSpec
from experiments.studies.tuning import STARTS, NodeLostError
from tests.experiments import made_up, small_run

SPACE = ["str.tokens=int:1:16", "sfm.sharing=off", "sfm.perturbation=off"]


class Crash:
    """Replaces Tune: trials end as the test says, or crash; `losses` says how often nodes take them along."""

    def __init__(self, workspace, crashing, killed_after=None, lost=(), losses=None):
        self.workspace = workspace
        self.crashing = crashing
        self.lost = lost
        self.killed_after = killed_after
        self.losses = dict(losses or {})

    def __call__(self, *given, search_alg, **search):
        outcomes = []
        while (suggestion := search_alg.suggest(f"t{len(outcomes)}")) != "FINISHED":
            number, position = suggestion["number"], len(outcomes)
            error = "Traceback\nOSError: out of memory" if number in self.crashing else None
            if self.losses.get(number):
                self.losses[number] -= 1
                error = NodeLostError("its process was lost with a node")
            crashes = error is not None
            outcomes.append(
                SimpleNamespace(
                    error=error,
                    # What Tune knows of a trial whose node was lost before its first report.
                    config=None,
                    path=f"/state/tune/trial_t{position}",
                )
            )
            if not crashes:
                search_alg.study.report(number, 3, 0.5)
                run = search_alg.study.trials()[number].run
                if number not in self.lost:
                    RunFolder(self.workspace / "train" / run).write_result(made_up.run_result())
            if number == self.killed_after:
                search_alg.study.finish(number, 0.5)
                raise KeyboardInterrupt
            search_alg.on_trial_complete(
                f"t{position}", None if crashes else {"finished": True, "hostname": "far"}, error=crashes
            )
        return outcomes


@pytest.fixture
def swept(ray_session, clip, workspace, tmp_path, monkeypatch):
    """Runs a sweep whose trials end as a `Crash` says; gives its result."""
    tables = small_run.configured(clip, workspace)[1]
    options = RunOptions.resolve(tmp_path, tracking_uri="http://127.0.0.1:9")

    def run(trials, crashing=(), **more):
        monkeypatch.setattr(sweeping, "tune_trials", Crash(tmp_path, crashing, **more))
        spec = SweepSpec("demo", tuple(small_run.settings(clip)), make_space(SPACE), trials, name="s")
        return sweeping.SweepStudy(spec, tables, options).run()

    return run


def noted(tmp_path):
    events = StudyFolder.of(tmp_path, "s").journal.read()
    return [(event["number"], event["state"]) for event in events if event["event"] == "trial"]


def test_trials_that_crashed_are_noted_counted_and_made_up_for_later(swept, tmp_path):
    first = swept(3, {1})
    assert first.missing == 1
    assert noted(tmp_path) == [(0, "finished"), (2, "finished"), (1, "crashed")]
    second = swept(3)
    assert second.missing == 0
    assert noted(tmp_path)[3:] == [(3, "finished")]


def test_trials_that_a_lost_node_took_along_are_started_again_and_one_that_crashed_is_made_up_for(
    swept, tmp_path
):
    result = swept(4, {1}, losses={0: 2, 2: 1})
    assert {number: state for number, state in noted(tmp_path) if state == "crashed"} == {1: "crashed"}
    assert [trial.state for trial in result.trials].count("finished") == 4
    assert (result.missing, len(result.trials), len(noted(tmp_path))) == (0, 5, 5)


def test_trial_that_is_lost_with_a_node_at_every_start_crashes_in_the_end(swept):
    result = swept(2, losses={1: STARTS})
    assert [trial.state for trial in result.trials] == ["finished", "crashed"]
    assert (result.missing, result.trials[1].reason) == (1, "its process was lost with a node")


def test_finished_trial_whose_result_is_on_another_disk_is_missing_with_a_reason(swept, tmp_path):
    result = swept(3, lost={1})
    assert (result.missing, result.is_complete) == (1, False)
    (run,) = result.wrong
    assert run == result.trials[1].run
    assert "trained on node far" in result.wrong[run]
    assert "the nodes do not share the workspace" in result.wrong[run]
    assert result.trials[1].state == "crashed"
    assert swept(3).missing == 0


def test_end_of_a_trial_that_a_kill_kept_from_the_journal_is_noted_later(swept, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        swept(3, killed_after=1)
    assert noted(tmp_path) == [(0, "finished")]
    swept(3)
    assert noted(tmp_path) == [(0, "finished"), (1, "finished"), (2, "finished")]


@pytest.mark.parametrize(("missing", "status"), [(0, 0), (1, 1)])
def test_sweep_with_fewer_trials_than_asked_for_exits_with_1(missing, status, monkeypatch, capsys):
    best = made_up.best_trial(made_up.trial(0))
    result = made_up.sweep_result(best=best, missing=missing)
    monkeypatch.setattr(sweep_sfm, "sweep", lambda given: result)
    assert sweep_sfm.main(["--json"]) == status
    assert json.loads(capsys.readouterr().out)["missing"] == missing


@pytest.mark.parametrize(("reported", "epoch"), [("last", 4), ("validation", 2), ("best_on_test", 2)])
def test_test_metrics_are_of_the_epoch_that_gave_the_value(reported, epoch):
    """An epoch that was chosen on test gives no value."""
    choices = {
        choice: {"epoch": number, "metrics": {"U": made_up.metrics(0.1 * number)}}
        for choice, number in (("last", 4), ("validation", 2), ("best_on_test", 3))
    }
    found = sweeping.measured_on_test(made_up.run_result(choices=choices), ReportConfig(epoch=reported))
    assert (found.epoch, found.mean_average_precision) == (epoch, pytest.approx(0.1 * epoch))
