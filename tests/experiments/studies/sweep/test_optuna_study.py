import json
import math
import threading
from itertools import product
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import optuna
import pytest
from ray import cloudpickle
from ray.tune.schedulers import TrialScheduler

from data_catalog.errors import StorageAwayError
from data_catalog.ray_session import WORKER_VARIABLES
from experiments.experiment_config import ConfigError, ReportConfig
from experiments.studies.sweep.optuna_study import OptunaStudy, TrialFacts
from experiments.studies.sweep.search_space import make_space
from experiments.studies.sweep.sweep_result import describe_values, find_best, find_front
from experiments.studies.sweep.tune_search import StoringScheduler, StudySearcher, trial_value
from tests.experiments import made_up
from tests.postgresql import PASSWORD

SPACE = make_space([])
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def known(values):
    return TrialFacts(run=json.dumps(values), cost=float(values["model.str.tokens"]))


@pytest.fixture
def file(tmp_path):
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, file):
    if request.param == "sqlite":
        return file
    return request.getfixturevalue("postgresql").database(f"optuna-{uuid4()}")


def open_study(url, fingerprint="a", seed=0, **more):
    return OptunaStudy(url, "s", fingerprint, SPACE, seed, **more)


def mean_average_precision(trial):
    """Replaces training: better with more tokens and little perturbation."""
    return 0.5 + 0.02 * trial.values["model.str.tokens"] - trial.values["model.sfm.perturbation"]


def run_to(study, trials, first=None):
    while len(study.trials()) < trials:
        trial = study.ask(known, first)
        study.report(trial.number, 4, mean_average_precision(trial))
        study.finish(trial.number, mean_average_precision(trial))


def test_each_sample_is_a_function_of_seed_number_and_history(file, tmp_path):
    run_to(open_study(file), 14)
    # The same sweep by a process a trial; the last four are sampled by TPE, not at random.
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for trials in range(1, 15):
        run_to(open_study(other), trials)
    sampled = [trial.values for trial in open_study(file).trials()]
    assert [trial.values for trial in open_study(other).trials()] == sampled
    assert len({json.dumps(values) for values in sampled}) > 10
    run_to(open_study(f"sqlite:///{tmp_path / 'seed.db'}", seed=1), 3)
    assert [t.values for t in open_study(f"sqlite:///{tmp_path / 'seed.db'}").trials()] != sampled[:3]


def test_later_trials_are_sampled_where_earlier_ones_were_good(file):
    study = open_study(file)
    run_to(study, 40)
    values = [mean_average_precision(trial) for trial in study.trials()]
    at_random = 0.5 + 0.02 * 8.5
    assert np.mean(values[20:]) > at_random + 0.05
    importance = study.importance()
    assert max(importance, key=importance.get) == "model.str.tokens"
    assert sum(importance.values()) == pytest.approx(1)


def test_first_trial_is_the_recipe_where_the_space_has_it(url, tmp_path):
    recipe = {
        "model.sfm.perturbation": 0.01,
        "model.str.tokens": 4,
        "model.sfm.sharing": "per_layer",
        "seed": 0,
    }
    study = open_study(url)
    run_to(study, 2, first=recipe)
    assert study.trials()[0].values == {
        name: recipe[name] for name in ("model.sfm.perturbation", "model.str.tokens", "model.sfm.sharing")
    }
    outside = open_study(f"sqlite:///{tmp_path / 'outside.db'}")
    run_to(outside, 1, first=recipe | {"model.sfm.perturbation": 0.5})
    assert outside.trials()[0].values["model.sfm.perturbation"] <= 0.1


def test_impossible_samples_are_sampled_again_and_not_stored(url):
    def describe(values):
        if values["model.str.tokens"] % 2:
            raise ConfigError("odd")
        return known(values)

    study = open_study(url)
    for _ in range(5):
        study.finish(study.ask(describe).number, 0.5)
    assert all(trial.values["model.str.tokens"] % 2 == 0 for trial in study.trials())

    def refuse(values):
        raise ConfigError("never")

    with pytest.raises(ConfigError, match=r"100 samples in a row .*: never"):
        study.ask(refuse)
    assert len(study.trials()) == 5


def test_states_are_kept_and_read_back(url):
    study = open_study(url)
    for _ in range(5):
        trial = study.ask(known)
        study.report(trial.number, 4, 0.4)
    study.finish(0, 0.6)
    study.prune(1)
    study.fail(2, "the loss is nan")
    study.crash(3, "out of memory")
    trials = open_study(url).trials()
    assert [trial.state for trial in trials] == ["finished", "pruned", "failed", "crashed", "running"]
    assert [trial.reason for trial in trials] == [None, None, "the loss is nan", "out of memory", None]
    assert [trial.value for trial in trials] == [0.6, None, None, None, None]
    assert all(trial.curve == {4: 0.4} for trial in trials)
    assert trials[4].run == json.dumps(trials[4].values)


def test_study_opens_with_optunas_own_tools(url):
    run_to(open_study(url), 3)
    study = optuna.load_study(study_name="s", storage=url)
    assert study.metric_names == ["validation mAP"]
    assert study.best_value == max(mean_average_precision(trial) for trial in open_study(url).trials())
    assert len(study.trials_dataframe()) == 3


def test_two_objectives_are_stored_as_two(url):
    study = open_study(url, two_objectives=True)
    run_to(study, 12)
    front = optuna.load_study(study_name="s", storage=url).best_trials
    assert {trial.number for trial in front} >= {trial.number for trial in find_front(study.trials())}


def test_name_of_another_sweep_is_refused(url):
    run_to(open_study(url), 1)
    with pytest.raises(ConfigError, match=r"is another sweep .* another --name"):
        open_study(url, fingerprint="b")


def test_study_with_other_objectives_is_refused_before_its_first_trial(url):
    open_study(url, two_objectives=True)
    with pytest.raises(ConfigError, match=r"is another sweep .* another --name"):
        open_study(url)


def test_refused_sweep_changes_nothing_in_the_study(url):
    open_study(url, owner={"id": "a", "path": "/first/studies/s"})
    with pytest.raises(ConfigError, match="is run from /first"):
        open_study(url, fingerprint="b", owner={"id": "b", "path": "/second/studies/s"})
    run_to(open_study(url, owner={"id": "a", "path": "/first/studies/s"}), 1)
    assert len(open_study(url, owner={"id": "a", "path": "/first/studies/s"}).trials()) == 1


def test_trial_that_was_about_to_be_noted_as_crashed_is_what_it_becomes(url, monkeypatch):
    study = open_study(url)
    trial = study.ask(known)
    with monkeypatch.context() as killed:
        killed.setattr(optuna.Study, "tell", lambda *given, **more: 1 / 0)
        for note in (study.crash, study.fail):
            with pytest.raises(ZeroDivisionError):
                note(trial.number, "its process ended")
    (left,) = open_study(url).trials()
    assert (left.state, left.reason) == ("running", None)
    study.finish(trial.number, 0.5)
    (finished,) = open_study(url).trials()
    assert (finished.state, finished.value, finished.reason) == ("finished", 0.5, None)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@h:abc/db",
        "postgresql://me:sec/secret@[::1/db",
        "nowhere",
        "postgres:secret",
        "mysteriousdb://me:secret@h/db",
    ],
)
def test_storage_that_cannot_be_opened_is_refused_without_its_password(url):
    with pytest.raises(
        ConfigError, match=r"--study-storage .* expected a database's URL|needs the driver"
    ) as error:
        open_study(url)
    if "@" in url:
        assert "secret" not in str(error.value)


def test_study_is_run_from_one_folder_also_where_workspaces_share_its_storage(url):
    study = open_study(url, owner={"id": "a", "path": "/first/studies/s"})
    run_to(study, 1)
    with pytest.raises(ConfigError, match=r"is run from /first/studies/s; from /second/.* another --name"):
        open_study(url, owner={"id": "b", "path": "/second/studies/s"})
    # Moved, it is the same folder.
    open_study(url, owner={"id": "a", "path": "/moved/studies/s"})


def test_storage_that_cannot_be_opened_is_named_without_its_password(tmp_path):
    for url in ("postgresql://me:secret@127.0.0.1:9/optuna", f"sqlite:///{tmp_path}/absent/optuna.db"):
        # Whether or not PostgreSQL's driver is installed.
        with pytest.raises(ConfigError, match=r"cannot be opened|needs the driver") as refused:
            open_study(url)
        assert "secret" not in str(refused.value)


def test_server_that_is_started_anew_is_waited_for_and_no_longer_than_asked(postgresql, monkeypatch):
    study = open_study(postgresql.database("restarted"))
    trial = study.ask(known)
    postgresql.stop()
    starting = threading.Timer(1.0, postgresql.start)
    starting.start()
    study.report(trial.number, 4, 0.25)
    starting.join()
    study.finish(trial.number, 0.5)
    (finished,) = study.trials()
    assert (finished.state, finished.curve, finished.value) == ("finished", {4: 0.25}, 0.5)
    monkeypatch.setitem(WORKER_VARIABLES, "DATA_CATALOG_STORAGE_PATIENCE", "0.5")
    postgresql.stop()
    try:
        with pytest.raises(StorageAwayError, match="--study-storage postgresql:") as away:
            study.report(trial.number, 5, 0.25)
    finally:
        postgresql.start()
    assert PASSWORD not in str(away.value)


def test_what_tune_stores_of_a_study_does_not_open_its_storage(tmp_path):
    study = open_study(f"sqlite:///{tmp_path / 'secret.db'}")
    study.url = "without its password"
    assert b"secret" not in cloudpickle.dumps(study)


def make_trials(points):
    return [
        made_up.trial(number, "finished" if value is not None else "pruned", value, cost=cost)
        for number, (cost, value) in enumerate(points)
    ]


def test_front_holds_what_no_trial_beats():
    random = np.random.default_rng(0)
    points = [(float(cost), float(value)) for cost, value in random.integers(0, 8, (40, 2))] + [(0.0, None)]
    trials = make_trials(points)
    front = {trial.number for trial in find_front(trials)}
    for number, (cost, value) in enumerate(points[:-1]):
        beaten = any(
            c <= cost and v >= value and ((c, v) != (cost, value) or other < number)
            for other, (c, v) in enumerate(points[:-1])
            if other != number
        )
        assert (number in front) != beaten
    # Of some of them, too, whose positions are not their numbers.
    assert {trial.number for trial in find_front([t for t in trials if t.number in front])} == front
    assert find_best(trials).value == 7
    assert find_best(make_trials([(1.0, None)])) is None


def test_value_is_that_of_the_epoch_that_the_recipe_reports_and_never_of_test():
    curve = {4: 0.6, 8: 0.7, 12: 0.65}
    assert trial_value(curve, ReportConfig(epoch="last")) == 0.65
    assert trial_value(curve, ReportConfig(epoch="validation")) == 0.7
    assert trial_value(curve, ReportConfig(epoch="best_on_test")) == 0.7


def test_settings_with_the_same_last_part_are_told_apart_in_the_name_of_a_trial():
    values = {"model.sfm.enabled": True, "model.chi.enabled": False, "model.sfm.perturbation": 0.0123456}
    expected = "model.sfm.enabled=True model.chi.enabled=False model.sfm.perturbation=0.0123"
    assert describe_values(values) == expected


def halving_decisions(study, curves, interrupted):
    """How Tune's side decides on trials that run one at a time; perhaps by a new process for each."""
    decisions = []
    scheduler = StoringScheduler(study, epochs=18, validate_every=2, early_stopping=True)
    for curve in curves:
        if interrupted:
            scheduler = StoringScheduler(study, epochs=18, validate_every=2, early_stopping=True)
        number = study.ask(known).number
        trial = SimpleNamespace(trial_id=f"t{number}", config={"number": number})
        scheduler.on_trial_add(None, trial)
        for epoch, value in curve.items():
            result = {"epoch": epoch, "validation_mAP": value}
            if scheduler.on_trial_result(None, trial, result) == STOP:
                decisions.append(epoch)
                study.prune(number)
                break
        else:
            decisions.append(None)
            study.finish(number, value)
    return decisions


def naive_halving(curves):
    """Asynchronous successive halving by its definition: rungs at 2 and 6, the first three never stop."""
    seen, decisions = {2: [], 6: []}, []
    for number, curve in enumerate(curves):
        stopped = None
        for rung, others in seen.items():
            value = curve[rung]
            if number >= 3 and value < np.percentile(others, 100 * 2 / 3):
                stopped = rung
            others.append(value)
            if stopped:
                break
        decisions.append(stopped)
    return decisions


def test_weak_trials_stop_at_the_rungs_even_if_a_new_process_runs_each_trial(url, tmp_path):
    random = np.random.default_rng(0)
    curves = [
        {
            epoch: float(base + 0.01 * epoch + noise)
            for epoch, noise in zip(range(2, 19, 2), random.normal(0, 0.05, 9), strict=True)
        }
        for base in random.uniform(0.3, 0.6, 16)
    ]
    expected = naive_halving(curves)
    assert {2, 6, None} == set(expected)
    assert halving_decisions(open_study(url), curves, interrupted=False) == expected
    other = open_study(f"sqlite:///{tmp_path / 'other.db'}")
    assert halving_decisions(other, curves, interrupted=True) == expected


def test_last_validation_stops_no_trial_nor_does_any_without_early_stopping(url):
    study = open_study(url)
    for _ in range(4):
        study.ask(known)
    for epochs, early_stopping in product((2, 4), (True, False)):
        scheduler = StoringScheduler(study, epochs, validate_every=2, early_stopping=early_stopping)
        for name, number, value in (("good", 0, 0.9), ("early", 1, 0.1), ("weak", 3, 0.1)):
            trial = SimpleNamespace(trial_id=name, config={"number": number})
            scheduler.on_trial_add(None, trial)
            decisions = [
                scheduler.on_trial_result(None, trial, {"epoch": epoch, "validation_mAP": value})
                for epoch in range(2, epochs + 1, 2)
            ]
            stops = name == "weak" and early_stopping and epochs == 4
            assert decisions[0] == (STOP if stops else CONTINUE)
            assert decisions[-1] == CONTINUE


def test_searcher_resumes_running_trials_then_samples_and_replaces_crashed_ones(url):
    study = open_study(url)
    for _ in range(3):
        study.ask(known)
    study.crash(1, "out of memory")
    config = SimpleNamespace(model_dump=lambda mode: {}, report=ReportConfig())
    called = []
    spec = SimpleNamespace(trials=4, config=lambda values: config, base=SimpleNamespace(flat=dict))
    searcher = StudySearcher(study, spec, known, called.append)
    numbers = []
    while (suggestion := searcher.suggest(f"t{len(numbers)}")) != "FINISHED":
        numbers.append(suggestion["number"])
    assert numbers == [0, 2, 3, 4]
    study.report(0, 4, 0.5)
    searcher.on_trial_complete("t0", {"finished": True})
    searcher.on_trial_complete("t1", {"epoch": 2})
    searcher.on_trial_complete("t2", {"stopped": "the loss is nan"})
    searcher.on_trial_complete("t3", {"failed": "its workers failed"})
    states = ["finished", "crashed", "pruned", "failed", "crashed", "running"]
    assert searcher.suggest("t4") == "FINISHED"
    study.ask(known)
    searcher.numbers["t5"] = 5
    searcher.on_trial_complete("t5", error=True)
    assert [trial.state for trial in study.trials()] == states
    assert [trial.state for trial in called[-4:]] == ["finished", "pruned", "failed", "crashed"]
    assert math.isclose(study.trials()[0].value, 0.5)
