"""A run that is killed at any moment, and continued, ends as if it had not been."""

import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from data_catalog.errors import StorageAwayError
from data_catalog.storage.folders import Folder
from experiments.evaluating.run_differences import find_differences
from experiments.run import evaluation
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import InterruptedRunError
from experiments.run.stop_request import LOOK_SECONDS, STOP_FILE, stopping_on_sigterm
from experiments.tracking.journal import Journal
from tests import kept_workspace
from tests.experiments import small_run
from tests.experiments.run.dying_run import train_until
from tests.kept_workspace import CLIP

OFTEN = "train.checkpoint_steps=1"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One whose tables are there: to make them takes Ray."""
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def undisturbed(workspace, tmp_path_factory):
    return small_run.alone(CLIP, workspace, runs=tmp_path_factory.mktemp("undisturbed"))


def test_checkpoint_that_is_due_at_the_end_of_an_epoch_is_taken_after_it(workspace, tmp_path):
    """With minutes as short as these one is due after each step, whatever `checkpoint_every` says."""
    settings = ("train.checkpoint_minutes=1e-9", "train.checkpoint_every=3")
    run = small_run.alone(CLIP, workspace, *settings, runs=tmp_path)
    events = run.journal.read()
    stored = [event["step"] for event in events if event["event"] == "checkpoint"]
    steps = max(event["step"] for event in events if event["event"] == "epoch")
    assert stored == list(range(1, steps + 1))


class EndedError(Exception):
    """Ends a run from a report of it."""


def assert_equal_runs(one: RunFolder, other: RunFolder) -> None:
    ours, theirs = (load_file(f"{run.result.checkpoint}/model.safetensors") for run in (one, other))
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert find_differences(one, other) == ()


def test_what_two_runs_differ_in_is_named(undisturbed, workspace, tmp_path):
    other = small_run.alone(CLIP, workspace, "optim.weight_decay=0.1", runs=tmp_path)
    differences = find_differences(other, undisturbed)
    assert {"epoch 2 differs", "test differs", "losses of the result differ"} <= set(differences)
    assert "untrained differs" not in differences
    lines = (other.path / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith('{"event": "epoch"') or '"epoch": 3,' not in line]
    (other.path / "journal.jsonl").write_text("".join(kept))
    assert "epoch 3 is missing" in find_differences(RunFolder(other.path), undisturbed)


def test_with_a_tolerance_rounding_is_no_difference_and_what_is_missing_is(undisturbed, workspace, tmp_path):
    """Two micro-batches round in another way; twenty times the learning rate is another training."""
    rounded = small_run.alone(CLIP, workspace, "train.micro_batches=2", runs=tmp_path)
    assert find_differences(rounded, undisturbed) != ()
    assert find_differences(rounded, undisturbed, 0.02) == ()
    faster = small_run.alone(CLIP, workspace, "optim.learning_rate=7e-3", runs=tmp_path)
    assert "epoch 3 differs" in find_differences(faster, undisturbed, 0.02)
    lines = (rounded.path / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith('{"event": "epoch"') or '"epoch": 3,' not in line]
    (rounded.path / "journal.jsonl").write_text("".join(kept))
    assert find_differences(RunFolder(rounded.path), undisturbed, 0.02) == ("epoch 3 is missing",)


def test_run_with_checkpoints_in_its_epochs_is_the_same_run(undisturbed, workspace, tmp_path):
    often = small_run.alone(CLIP, workspace, OFTEN, runs=tmp_path)
    assert often.name == undisturbed.name
    assert_equal_runs(often, undisturbed)
    steps = [event["step"] for event in often.journal.read() if event["event"] == "checkpoint"]
    assert steps == sorted(set(steps))
    assert len(steps) == often.journal.epochs()[-1]["step"]


def test_run_that_ends_within_an_epoch_goes_on_from_there(undisturbed, workspace, tmp_path):
    def end_after_checkpoint(facts):
        if facts["event"] == "checkpoint" and facts["step"] == 4:
            raise EndedError

    with pytest.raises(EndedError):
        small_run.alone(CLIP, workspace, OFTEN, runs=tmp_path, on_report=end_after_checkpoint)
    # How often it is checkpointed may change: it is the same run.
    run = small_run.alone(CLIP, workspace, runs=tmp_path)
    resumed = run.journal.last("resumed")
    assert (resumed["epoch"], resumed["step"]) == (1, 4)
    assert [event["step"] for event in run.journal.epochs()] == [3, 5, 7]
    assert_equal_runs(run, undisturbed)


@pytest.mark.fault
@pytest.mark.slow
def test_run_that_is_killed_again_and_again_ends_as_if_undisturbed(undisturbed, workspace, tmp_path):
    """At the first step and the last, within an epoch, and in and after the write of a checkpoint."""
    settings = "train.checkpoint_steps=2"
    for moment, count in (
        ("before a step", 1),
        ("before a step", 4),
        ("in the write of a checkpoint", 1),
        ("between a checkpoint and its journal", 4),
        ("in the write of the journal", 5),
        ("before a step", 2),
    ):
        train_until(moment, count, workspace, tmp_path, settings)
    # As Ray Train names its folders, by the time.
    (path,) = tmp_path.glob("train/*")
    (path / "checkpoint_2026-01-01_00-00-00.000000.partial").mkdir()
    run = small_run.alone(CLIP, workspace, settings, runs=tmp_path)
    assert_equal_runs(run, undisturbed)
    assert run.result.resumed
    assert not list(run.path.glob("*.partial"))


def test_storage_that_is_away_is_not_waited_for_once_more_to_note_the_failure(workspace, tmp_path):
    def lose_storage(facts):
        raise StorageAwayError("s3://lab has not answered")

    with pytest.raises(StorageAwayError):
        small_run.alone(CLIP, workspace, runs=tmp_path, on_report=lose_storage)
    (journal,) = tmp_path.glob("train/*/journal.jsonl")
    assert Journal(journal).last("failed") is None


@pytest.mark.fault
def test_sigterm_ends_it_with_a_checkpoint_of_the_next_step(undisturbed, workspace, tmp_path):
    def terminate(facts):
        if facts["event"] == "epoch" and facts["epoch"] == 1:
            signal.raise_signal(signal.SIGTERM)
            # Several times as long as until the worker looks.
            time.sleep(5 * LOOK_SECONDS)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM after step 4, of which"):
        small_run.alone(CLIP, workspace, runs=tmp_path, on_report=terminate)
    assert signal.getsignal(signal.SIGTERM) is before
    run = small_run.alone(CLIP, workspace, runs=tmp_path)
    assert run.journal.last("resumed")["step"] == 4
    assert_equal_runs(run, undisturbed)


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (1, "before its first step"),
        (2, "after step 5, of which it has a checkpoint"),
        (4, "after step 7, of which it has a checkpoint"),
        (5, "after step 7, of which it has a checkpoint"),
    ],
)
def test_sigterm_ends_an_evaluation_which_is_made_again(
    undisturbed, workspace, tmp_path, monkeypatch, number, where
):
    """Before the first step, after an epoch, and the two after the last one, without a step in between."""
    embed, calls = evaluation.embed, 0

    def terminate(*given, **named):
        nonlocal calls
        calls += 1
        if calls == number:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(5 * LOOK_SECONDS)
        return embed(*given, **named)

    monkeypatch.setattr(evaluation, "embed", terminate)
    with pytest.raises(InterruptedRunError, match=f"stopped by SIGTERM {where}; run"):
        small_run.alone(CLIP, workspace, runs=tmp_path)
    run = small_run.alone(CLIP, workspace, runs=tmp_path)
    assert calls > number
    assert_equal_runs(run, undisturbed)


def test_request_that_a_killed_driver_left_does_not_stop_the_next_start(tmp_path):
    (tmp_path / STOP_FILE).touch()
    with stopping_on_sigterm(Folder(tmp_path)):
        assert not (tmp_path / STOP_FILE).exists()
        signal.raise_signal(signal.SIGTERM)
        assert (tmp_path / STOP_FILE).exists()
    assert not (tmp_path / STOP_FILE).exists()


class OlderError(Exception):
    """Raised by what answers SIGTERM outside of training."""


@pytest.fixture
def older_handler():
    def older(number, frame):
        raise OlderError

    before = signal.signal(signal.SIGTERM, older)
    yield
    signal.signal(signal.SIGTERM, before)


def test_second_sigterm_does_what_it_did_before(tmp_path, older_handler):
    with stopping_on_sigterm(Folder(tmp_path)):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(OlderError):
            signal.raise_signal(signal.SIGTERM)
    assert not (tmp_path / STOP_FILE).exists()


def test_sigterm_without_storage_for_a_checkpoint_does_what_it_did_before(
    tmp_path, older_handler, without_storage
):
    with pytest.raises(OlderError), stopping_on_sigterm(Folder(tmp_path)), without_storage():
        signal.raise_signal(signal.SIGTERM)
