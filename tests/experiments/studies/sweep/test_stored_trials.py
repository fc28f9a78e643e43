"""A sweep's SQLite file is made again from the stored trials, and the sweep goes on as if it was kept."""

import pytest

from data_catalog.storage.folders import Folder
from experiments.studies.sweep.optuna_study import OptunaStudy
from experiments.studies.sweep.search_space import make_space
from experiments.studies.sweep.stored_trials import StoredTrials
from tests.experiments.studies.sweep.test_optuna_study import known, run_to

SPACE = make_space([])


@pytest.fixture(params=["disk", "object storage"])
def folder(request, tmp_path, object_storage):
    if request.param == "disk":
        return Folder(tmp_path / "study")
    return Folder(object_storage("stored-trials")) / tmp_path.name


def opened(tmp_path, folder, name, **more):
    url, stored = f"sqlite:///{tmp_path / name}.db", StoredTrials(folder)
    return OptunaStudy(url, "s", "a", SPACE, 0, stored=stored, **more)


@pytest.mark.parametrize("two_objectives", [False, True])
def test_every_state_of_a_trial_is_there_again(folder, tmp_path, two_objectives):
    study = opened(tmp_path, folder, "first", two_objectives=two_objectives)
    for _ in range(5):
        study.ask(known)
    study.report(0, 2, 0.25)
    study.report(0, 4, 0.5)
    study.finish(0, 0.5)
    study.report(1, 2, 0.1)
    study.prune(1)
    study.fail(2, "the loss is nan")
    study.crash(3, "out of memory")
    study.report(4, 2, 0.75)
    again = opened(tmp_path, folder, "second", two_objectives=two_objectives)
    assert again.trials() == study.trials()
    assert [trial.state for trial in again.trials()] == ["finished", "pruned", "failed", "crashed", "running"]
    # The trial that still runs goes on.
    again.report(4, 4, 0.8)
    again.finish(4, 0.8)
    assert opened(tmp_path, folder, "third", two_objectives=two_objectives).trials() == again.trials()


def test_next_trials_are_those_that_the_kept_file_would_have_given(tmp_path):
    kept, made_again = Folder(tmp_path / "kept"), Folder(tmp_path / "again")
    run_to(opened(tmp_path, kept, "kept"), 13)
    run_to(opened(tmp_path, made_again, "first"), 11)
    run_to(opened(tmp_path, made_again, "second"), 13)
    assert opened(tmp_path, made_again, "second").trials() == opened(tmp_path, kept, "kept").trials()


def test_trials_of_a_file_from_before_they_were_stored_are_stored(tmp_path):
    old = OptunaStudy(f"sqlite:///{tmp_path / 'kept'}.db", "s", "a", SPACE, 0)
    run_to(old, 2)
    folder = Folder(tmp_path / "study")
    assert opened(tmp_path, folder, "kept").trials() == old.trials()
    assert opened(tmp_path, folder, "again").trials() == old.trials()


def test_file_that_a_kill_left_ahead_of_the_stored_trials_wins(tmp_path):
    folder = Folder(tmp_path / "study")
    run_to(opened(tmp_path, folder, "kept"), 1)
    # As where the process was killed before the second trial, or its end, was stored.
    unstored = OptunaStudy(f"sqlite:///{tmp_path / 'kept'}.db", "s", "a", SPACE, 0)
    run_to(unstored, 2)
    assert opened(tmp_path, folder, "kept").trials() == unstored.trials()
    assert opened(tmp_path, folder, "again").trials() == unstored.trials()
