"""A step that runs out of memory: the run goes on with more micro-batches, or names the number that helps."""

import logging
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from experiments.evaluating.verification import step_losses, verify
from experiments.recipes import resolve
from experiments.run import lifecycle
from experiments.run.micro_batches import (
    OUT_OF_MEMORY,
    StepMemoryError,
    more_micro_batches,
    naming_step,
    with_micro_batches,
)
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import RunError
from experiments.run.workers import worker
from tests import kept_workspace
from tests.experiments import small_run
from tests.experiments.run.limited_memory import room_for, train_worker_with_room
from tests.kept_workspace import CLIP
from tests.tolerances import ROUNDING_FLOAT32


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One whose tables are there: to make them takes Ray."""
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def undisturbed(workspace, tmp_path_factory):
    return small_run.alone(CLIP, workspace, runs=tmp_path_factory.mktemp("undisturbed"))


MOVED_BY_ROUNDING = (
    "fusion.out.bias",
    "fusion.value.bias",
    "heads.U.norm.running_mean",
    "attn.in_proj_bias",
    "key.bias",
    "kv.bias",
)
"""Ends of the names of weights whose gradient is zero but for rounding, which Adam scales up: a softmax takes
away the bias of keys, and the normalisation of the head what is added to U, whose mean it notes."""


def shortages(run):
    return [
        (event["step"], event["micro_batches"])
        for event in run.journal.read()
        if event["event"] == OUT_OF_MEMORY
    ]


def weights(run):
    stored = load_file(f"{run.result.checkpoint}/model.safetensors")
    names = sorted(name for name in stored if not name.endswith(MOVED_BY_ROUNDING))
    return torch.cat([stored[name].flatten().double() for name in names])


def assert_same_model(run, undisturbed):
    """That of the undisturbed run, up to rounding."""
    expected = step_losses(undisturbed.journal)
    assert step_losses(run.journal) == pytest.approx(expected, rel=ROUNDING_FLOAT32)
    ours, theirs = weights(run), weights(undisturbed)
    assert torch.dist(ours, theirs) < ROUNDING_FLOAT32 * theirs.norm()


@pytest.mark.parametrize(
    ("batch", "workers", "fewest", "numbers"),
    [
        (48, 2, None, [1, 2, 4, 8, 24]),
        (72, 1, None, [1, 2, 4, 8, 18, 36, 72]),
        (6, 2, None, [1, 3]),
        (8, 8, None, [1]),
        # Shares of 24 and of 6 samples.
        (48, 8, 2, [1, 2, 6]),
    ],
)
def test_micro_batches_are_doubled_until_each_has_one_sample(batch, workers, fewest, numbers):
    config = resolve(
        "demo", [f"batch.size={batch}", "batch.samples_per_identity=2", f"train.workers={workers}"]
    )
    found = [config.train.micro_batches]
    while (number := more_micro_batches(config, fewest)) is not None:
        found.append(number)
        config = with_micro_batches(config, number)
    assert found == numbers


def test_failed_allocation_in_a_step_names_the_step_and_other_errors_stay():
    wanted = r"step 3 needed more memory .* train.micro_batches=1, 24 samples each \(CUDA out of memory"
    with pytest.raises(StepMemoryError, match=wanted) as raised, naming_step(3, resolve("demo"), workers=2):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    # Ray sends it to another process.
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    with pytest.raises(RuntimeError, match="shapes cannot"), naming_step(3, resolve("demo"), workers=2):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_run_goes_on_from_its_checkpoint_with_micro_batches_that_fit(
    undisturbed, workspace, tmp_path, caplog
):
    """Of the steps 1 to 7, the fourth one is the first that finds the memory taken."""
    with room_for(3, from_step=4) as passed, caplog.at_level(logging.WARNING):
        run = small_run.alone(CLIP, workspace, runs=tmp_path, raises_micro_batches=True)
    assert shortages(run) == [(4, 2), (4, 4)]
    assert "step 4 ran out of memory" in caplog.text
    assert "train.micro_batches=2" in caplog.text
    assert set(passed) == {8, 4, 2}
    assert run.journal.last("resumed")["step"] == 3
    assert run.name == undisturbed.name
    assert "step 4 ran out of memory, and training went on with train.micro_batches=4" in run.result.notes
    assert_same_model(run, undisturbed)


class EndedError(Exception):
    """Ends a run from a report of it."""


def test_later_starts_begin_with_the_micro_batches_that_fit(undisturbed, workspace, tmp_path):
    def end(facts):
        if facts["event"] == "epoch" and facts["epoch"] == 2:
            raise EndedError

    with room_for(4), pytest.raises(EndedError):
        small_run.alone(CLIP, workspace, runs=tmp_path, on_report=end, raises_micro_batches=True)
    with room_for(4) as passed:
        run = small_run.alone(CLIP, workspace, runs=tmp_path, raises_micro_batches=True)
    assert set(passed) == {4}
    assert shortages(run) == [(1, 2)]
    assert_same_model(run, undisturbed)
    # All steps have had two micro-batches, so the repetition is equal to the last bit.
    verification = verify(run, 2, RunOptions.resolve(tmp_path))
    assert verification.verified
    assert any("step 1 ran out of memory" in note for note in verification.notes)


def test_run_ends_in_a_line_that_names_the_micro_batches_to_set(workspace, tmp_path):
    with room_for(4), pytest.raises(RunError) as ended:
        small_run.alone(CLIP, workspace, runs=tmp_path)
    message = str(ended.value)
    for part in ("step 1 needed more memory", "set train.micro_batches=2", "--on-memory double", "allocate"):
        assert part in message
    assert "\n" not in message
    (path,) = tmp_path.glob("train/*")
    assert RunFolder(path).journal.last("failed")["error"] == message
    # As it says.
    with room_for(4):
        small_run.alone(CLIP, workspace, "train.micro_batches=2", runs=tmp_path)


def test_run_whose_single_samples_do_not_fit_ends(workspace, tmp_path):
    with room_for(0), pytest.raises(RunError, match=r"no smaller micro-batches .*checkpoint_activations=on"):
        small_run.alone(CLIP, workspace, runs=tmp_path, raises_micro_batches=True)
    (path,) = tmp_path.glob("train/*")
    assert shortages(RunFolder(path)) == [(1, 2), (1, 4), (1, 8)]


@pytest.mark.fault
@pytest.mark.slow
def test_workers_of_which_one_runs_out_of_memory_all_go_on_with_more_micro_batches(
    ray_session, undisturbed, workspace, tmp_path, monkeypatch
):
    config, tables = small_run.configured(CLIP, workspace, "train.workers=2")
    options = replace(RunOptions.resolve(tmp_path).without_tracking(), raises_micro_batches=True)
    monkeypatch.setattr(worker, "train_worker", train_worker_with_room)
    run = RunFolder(lifecycle.run(config, tables, options).folder)
    assert shortages(run) == [(6, 2)]
    # The other worker did not fail; it was ended while it waited.
    assert run.journal.last("worker_failed") is None
    assert_same_model(run, undisturbed)
