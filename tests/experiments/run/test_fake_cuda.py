"""Training and evaluation on CUDA tensors without content: a tensor left on another device is an error."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from experiments.planning.dry_run import DryRun, untrained_clip
from experiments.recipes import resolve
from experiments.run import evaluation
from experiments.run.workers.batch_input import BatchInput
from stmi.modality import Modality
from stmi.model import STMI

CUDA = torch.device("cuda")
EVERYTHING = [
    "train.precision=bfloat16",
    "augment.geometry=per_modality",
    "model.sfm.perturbation_draw=layer_and_modality",
    "model.sfm.perturbation=0.2",
    "model.camera_embedding=on",
    "model.text.fine_tune=on",
    "model.chi.convolution=released",
    "model.chi.incidence=euclidean",
    "model.fusion.dropout=0.1",
    "train.micro_batches=2",
    "train.checkpoint_activations=on",
]


@contextmanager
def run_on_cuda(settings):
    """A dry run whose model is on a GPU that need not exist."""
    config = resolve("demo", settings)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with CUDA:
            clip = untrained_clip(config)
            model = STMI(config.model, clip, identities=60, cameras=4, seed=0)
        # `Module.to` cannot move tensors without content, and this one is made on the CPU by name.
        model.perturbation = model.perturbation.to(CUDA)
        yield DryRun(config, model, clip.model.context_length)


@pytest.fixture(autouse=True)
def autocast_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.mark.parametrize("settings", [["train.precision=float32"], ["train.precision=bfloat16"], EVERYTHING])
def test_augmentation_forward_pass_and_losses_stay_on_the_gpu(settings):
    with run_on_cuda(settings) as run:
        images, draws, labels = run.batch()
        made = [*vars(images).values(), *vars(draws).values(), labels]
        parts = run.take_step.module(images, draws, labels)
        parts |= run.take_step.module(images.rows(slice(0, 2)), draws.rows(slice(0, 2)))
        assert {x.device.type for x in [*made, *parts.values()] if x is not None} == {"cuda"}
        assert {x.dtype for x in parts.values()} == {torch.float32}


def view_and_captions(run):
    """Rows as a `View` reads them, and their token numbers where the text tower is trained."""
    image, width = run.config.model.image, run.model.image_tower.proj.shape[1]
    size = (image.height, image.width)
    view = SimpleNamespace(
        batch=lambda rows: SimpleNamespace(
            pixels=np.zeros((len(rows), 3, 3, *size), np.uint8),
            mask=np.zeros((len(rows), *size), np.uint8),
            text_feature=np.zeros((len(rows), width), np.float32),
            camera_id=np.zeros(len(rows), np.int32),
            missing=np.zeros((len(rows), 3), np.bool_),
        )
    )
    return view, np.zeros((99, run.context_length), np.int64) if run.model.text_tower else None


@pytest.mark.parametrize("settings", [["train.precision=float32"], EVERYTHING])
def test_evaluation_stays_on_the_gpu(settings):
    with run_on_cuda(settings) as run:
        view, tokens = view_and_captions(run)
        captions = None if tokens is None else torch.from_numpy(tokens)
        for missing in ((), (Modality.NIR,)):
            made = evaluation.embed_rows(run.model, view, np.arange(3, 7), run.autocast, captions, missing)
            assert {x.device.type for x in made.values()} == {"cuda"}


@pytest.mark.parametrize("settings", [["train.precision=float32"], EVERYTHING])
def test_input_of_a_step_is_all_on_the_gpu(settings):
    with run_on_cuda(settings) as run:
        view, captions = view_and_captions(run)
        given = BatchInput(run.config, run.model, view, np.arange(99) // 3, captions, run.rows)
        [made] = given.make(np.arange(run.share)[None], epoch=1, first=2)
        assert {x.device.type for x in made.tensors()} == {"cuda"}
        assert (made.batch.caption is None) == (captions is None)
        losses = run.take_step.module(made.batch, made.draws, made.labels)
        assert {x.device.type for x in losses.values()} == {"cuda"}


def test_tensor_that_is_left_on_the_processor_is_found():
    with run_on_cuda(["train.precision=float32"]) as run:
        batch = run.batch()
        run.model.perturbation = run.model.perturbation.cpu()
        with pytest.raises(Exception, match="device"):
            run.take_step.module(*batch)
