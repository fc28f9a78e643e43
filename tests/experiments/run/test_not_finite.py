"""A batch whose loss is not finite: it is named, and ends the run or is left out."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from experiments import verify_run
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import StoppedError
from experiments.run.workers.batch_input import BatchInput
from stmi.training.train_step import TrainStep
from tests import kept_workspace
from tests.experiments import small_run
from tests.kept_workspace import CLIP

BAD_STEP = 4
"""The first step of the second epoch of the small run."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One whose tables are there: to make them takes Ray."""
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def spoil(monkeypatch):
    """Makes the images of some steps of the next training not finite; counts its steps."""
    original = BatchInput.steps

    def call(*steps):
        taken = []

        def spoiled(*given):
            for made in original(*given):
                taken.append(None)
                images = made.batch.images * (torch.nan if len(taken) in steps else 1.0)
                yield replace(made, batch=replace(made.batch, images=images))

        monkeypatch.setattr(BatchInput, "steps", spoiled)
        return taken

    return call


def samples_of_a_batch(run):
    return json.loads(run.read("config.json"))["config"]["batch"]["size"]


@pytest.mark.fault
def test_run_ends_at_the_next_step_and_names_the_samples(workspace, tmp_path, spoil):
    taken = spoil(BAD_STEP)
    with pytest.raises(
        StoppedError, match="the loss of epoch 2, or its gradient, is not finite in step 4, at learning rate"
    ) as stopped:
        small_run.alone(CLIP, workspace, runs=tmp_path)
    assert len(taken) == BAD_STEP + 1
    (path,) = tmp_path.glob("train/*")
    run = RunFolder(path)
    event = run.journal.last("stopped")
    assert event["step"] == BAD_STEP
    assert len(set(event["samples"])) == samples_of_a_batch(run)
    assert event["samples"][0] in str(stopped.value)
    # The last checkpoint is from before.
    assert run.journal.last("checkpoint")["step"] == BAD_STEP - 1


@pytest.mark.parametrize("skips", [False, True])
def test_batch_with_a_finite_loss_but_no_finite_gradient_is_the_one_that_is_named(
    workspace, tmp_path, monkeypatch, skips
):
    original, taken = TrainStep.backward, []

    def spoiled(self, *given):
        parts = original(self, *given)
        taken.append(None)
        if len(taken) == BAD_STEP:
            next(self.model.parameters()).grad[...] = torch.inf
        return parts

    monkeypatch.setattr(TrainStep, "backward", spoiled)
    ended = nullcontext() if skips else pytest.raises(StoppedError, match="or its gradient, is not finite in")
    with ended:
        small_run.alone(CLIP, workspace, "train.checkpoint_steps=1", runs=tmp_path, skips_not_finite=skips)
    (path,) = tmp_path.glob("train/*/")
    run = RunFolder(path)
    named = run.journal.epochs()[1]["skipped"] if skips else [run.journal.last("stopped")]
    assert [step["step"] for step in named] == [BAD_STEP]
    weights = load_file(run.last_checkpoint + "/model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


def test_checkpoint_never_holds_weights_of_a_loss_that_is_not_finite(workspace, tmp_path, spoil):
    spoil(BAD_STEP)
    with pytest.raises(StoppedError):
        small_run.alone(CLIP, workspace, "train.checkpoint_steps=1", runs=tmp_path)
    (path,) = tmp_path.glob("train/*")
    weights = load_file(RunFolder(path).last_checkpoint + "/model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


@pytest.mark.fault
def test_batch_is_left_out_and_counted_where_asked_for(workspace, tmp_path, spoil):
    spoil(BAD_STEP)
    run = small_run.alone(CLIP, workspace, runs=tmp_path, skips_not_finite=True)
    first, second, third = run.journal.epochs()
    assert first["skipped"] == third["skipped"] == []
    (skipped,) = second["skipped"]
    assert skipped["step"] == BAD_STEP
    assert len(set(skipped["samples"])) == samples_of_a_batch(run)
    assert second["step_losses"][0] is None
    # The mean is that of the other step.
    assert second["losses"]["total"] == pytest.approx(second["step_losses"][1])
    weights = load_file(run.result.checkpoint + "/model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


def test_run_ends_where_no_batch_of_an_epoch_is_left(workspace, tmp_path):
    settings = ("optim.learning_rate=1e30", "optim.gradient_clip=0")
    with pytest.raises(StoppedError, match="no other batch's is finite; lower"):
        small_run.alone(CLIP, workspace, *settings, runs=tmp_path, skips_not_finite=True)


def test_run_that_left_out_a_batch_is_verified_without_it(workspace, tmp_path, spoil, capsys):
    """The loss of that step is None on record, and must be in the repetition."""
    spoil(BAD_STEP)
    run = small_run.alone(CLIP, workspace, runs=tmp_path, skips_not_finite=True)
    assert run.journal.epochs()[1]["step_losses"][0] is None
    command = [str(run.path), "--workspace", str(tmp_path), "--steps", str(BAD_STEP + 1), "--json"]
    spoil(BAD_STEP)
    assert verify_run.main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["equal_losses"], result["largest_difference"]) == (BAD_STEP + 1, 0.0)
    spoil()
    assert verify_run.main(command) == 1
    first = json.loads(capsys.readouterr().out)["first_difference"]
    assert (first["step"], first["what"], first["recorded"]) == (BAD_STEP, "loss", None)
    spoil(1)
    assert verify_run.main([*command[:-2], "3", "--json"]) != 0
    assert "stopped itself, which the run did not within 3 steps" in capsys.readouterr().err
