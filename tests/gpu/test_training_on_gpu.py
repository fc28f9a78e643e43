"""What must hold on a real GPU; without one, `tests/experiments/run/test_fake_cuda.py` checks the devices."""

import numpy as np
import pytest
import torch

from data_catalog.ray_failures import ran_out_of_memory
from experiments.benchmarks import training_benchmarks
from experiments.planning.cost import measure_cost
from experiments.planning.dry_run import DryRun, untrained_clip
from experiments.recipes import resolve
from stmi.config import AugmentConfig
from stmi.model import STMI
from stmi.training import augment
from tests import tiny_clip
from tests.experiments.run.test_batch_input import batch_input, plan
from tests.stmi.training import training
from tests.stmi.training.test_train_step import in_processes
from tests.tolerances import EXACT_FLOAT64, ROUNDING_FLOAT32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
]
GPU = "cuda"
STEPS = 5
MEMORY_FACTOR = 1.25
"""Largest ratio between the memory that a plan predicts and what PyTorch's allocator gives out."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip.write(tmp_path_factory.mktemp("training") / "clip")


@pytest.fixture(scope="module")
def on_processor(clip):
    return training.train(clip, STEPS)


def expect_same(trained, expected):
    totals, weights = trained
    assert totals == pytest.approx(expected[0], abs=EXACT_FLOAT64)
    for name, value in expected[1].state_dict().items():
        assert torch.allclose(weights[name].cpu(), value, atol=EXACT_FLOAT64), name


@pytest.mark.parametrize(
    "options", [{}, {"micro_batches": 3}, {"checkpoint_activations": True}], ids=["whole", "parts", "again"]
)
def test_gpu_trains_the_model_of_the_processor(clip, on_processor, options):
    totals, model = training.train(clip, STEPS, device=GPU, **options)
    expect_same((totals, model.state_dict()), on_processor)


def test_two_processes_with_nccl_train_the_model_of_one(clip, on_processor):
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a GPU for each process, and this machine has one")
    in_processes(training.train_on_gpu_as_rank, 2, clip.parent, STEPS)
    spread = torch.load(clip.parent / "result-nccl.pt", weights_only=True, map_location="cpu")
    expect_same((spread["totals"], spread["model"]), on_processor)


def test_compiled_steps_train_the_eager_model(clip):
    eager, _ = training.train(clip, 3, dtype=torch.float32, device=GPU)
    compiled, _ = training.train(clip, 3, dtype=torch.float32, device=GPU, compiled=True)
    assert compiled == pytest.approx(eager, rel=1e-4)


def test_bfloat16_trains_nearly_as_float32(clip):
    exact, _ = training.train(clip, 3, dtype=torch.float32, device=GPU)
    rounded, _ = training.train(clip, 3, dtype=torch.float32, device=GPU, autocast=True)
    assert rounded == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("per_sample", ["shared", "per_modality"])
def test_augmentation_and_its_noise_are_those_of_the_processor(per_sample):
    random, config = np.random.default_rng(0), AugmentConfig(geometry=per_sample)
    pixels = torch.from_numpy(random.integers(0, 256, (24, 3, 3, 64, 32), dtype=np.uint8))
    mask = torch.from_numpy(random.integers(0, 256, (24, 64, 32), dtype=np.uint8))
    geometry = augment.sample_geometry(config, 24, (64, 32), 0, 0, 0)

    def run(device):
        images, moved = augment.augment(pixels.to(device), mask.to(device), geometry, config.crop_padding)
        return images.cpu(), moved.cpu()

    (expected, expected_mask), (images, moved) = run("cpu"), run(GPU)
    assert torch.equal(moved, expected_mask)
    assert torch.allclose(images, expected, atol=ROUNDING_FLOAT32)


def test_input_that_is_made_ahead_is_that_of_the_processor():
    ahead = batch_input(device=GPU).steps(plan(5), epoch=1)
    for expected, made in zip(batch_input().steps(plan(5), epoch=1), ahead, strict=True):
        for one, two in zip(expected.tensors(), made.tensors(), strict=True):
            assert two.device.type == GPU
            assert torch.allclose(one.float(), two.cpu().float(), atol=ROUNDING_FLOAT32)


def test_step_of_the_published_size_is_measured_on_the_gpu():
    found = training_benchmarks.train_step(repeats=3)
    assert found.settings["device"] == torch.cuda.get_device_name()
    products, eager, compiled = found.results
    # A step holds its matrix products, and takes no longer compiled.
    assert eager.ratio > 1
    assert products.median_seconds < compiled.median_seconds < eager.median_seconds


def test_memory_of_a_gpu_that_runs_out_is_known():
    with pytest.raises(torch.OutOfMemoryError) as refused:
        torch.empty(2**50, device=GPU)
    assert ran_out_of_memory(refused.value)


@pytest.mark.parametrize("settings", [[], ["train.micro_batches=4"], ["train.checkpoint_activations=on"]])
def test_memory_is_what_a_plan_says(settings):
    settings = ["train.workers=1", "train.precision=bfloat16", "train.evaluation_batch=8", *settings]
    config = resolve("demo", settings)
    predicted = measure_cost(config, 60, 4).memory
    clip = untrained_clip(config)
    model = STMI(config.model, clip, identities=60, cameras=4, seed=0).to(GPU)
    run = DryRun(config, model, clip.model.context_length)
    run.train()
    model.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    run.train()
    peak = torch.cuda.max_memory_allocated()
    assert 1 / MEMORY_FACTOR < predicted.training_peak / peak < MEMORY_FACTOR
