"""What a run that was interrupted shows and notes when it goes on."""

import pytest

from experiments.run import lifecycle
from experiments.run.run_options import RunOptions
from tests.experiments import small_run


@pytest.fixture
def interrupted(ray_session, clip, workspace, tmp_path):
    """A function that trains the small run until after an epoch, with a checkpoint every so many epochs."""

    def interrupt(after, *changes):
        def on_report(facts):
            if facts["event"] == "epoch" and facts["epoch"] == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            small_run.alone(clip, workspace, *changes, runs=tmp_path, on_report=on_report)

    return interrupt


@pytest.mark.parametrize(("every", "kept"), [(3, 0), (2, 2)])
def test_epochs_that_will_be_repeated_are_not_shown_as_done(
    interrupted, clip, workspace, tmp_path, monkeypatch, every, kept
):
    changes = ["train.epochs=4", f"train.checkpoint_every={every}"]
    interrupted(3 if every == 2 else 2, *changes)
    shown, bar, reported = [], lifecycle.open_progress, []

    def open_progress(title, unit, total, done=0, **options):
        shown.append((done, total))
        return bar(title, unit, total, done, **options)

    monkeypatch.setattr(lifecycle, "open_progress", open_progress)
    config, tables = small_run.configured(clip, workspace, *changes)
    lifecycle.run(config, tables, RunOptions.resolve(tmp_path), threads=1, on_report=reported.append)
    assert shown == [(kept, 4)]
    # The epochs that are kept, then each of the others once.
    assert [facts["epoch"] for facts in reported if facts["event"] == "epoch"] == [1, 2, 3, 4]


def test_start_before_the_first_checkpoint_is_noted_and_measures_the_untrained_model_once(
    interrupted, clip, workspace, tmp_path
):
    interrupted(2, "train.checkpoint_every=3")
    run = small_run.alone(clip, workspace, "train.checkpoint_every=3", runs=tmp_path)
    events = run.journal.read()
    assert [event["event"] for event in events].count("untrained") == 1
    assert [event["epoch"] for event in events if event["event"] == "started"] == [0, 0]
    assert [event["epoch"] for event in events if event["event"] == "restarted"] == [0]
    assert not run.result.resumed
    undisturbed = small_run.alone(clip, workspace, "train.checkpoint_every=3", runs=tmp_path / "undisturbed")
    assert run.result.losses == undisturbed.result.losses
    assert run.result.untrained == undisturbed.result.untrained
