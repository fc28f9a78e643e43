from functools import cache

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from experiments.experiment_config import ConfigError
from experiments.planning.cost import measure_cost
from experiments.planning.dry_run import DryRun, untrained_clip
from experiments.planning.flop_counts import PARTS, pass_flops
from experiments.recipes import resolve
from stmi.clip.loading import load_clip
from stmi.errors import ClipFileError
from stmi.model import STMI

IDENTITIES, CAMERAS = 60, 4
MEMORY_FACTOR = 1.1
"""Largest ratio between the predicted memory and what PyTorch's allocator gives out."""


@cache
def measured_cost(*settings):
    return measure_cost(resolve("demo", list(settings)), IDENTITIES, CAMERAS)


def image_tower_flops():
    """Forward FLOPs of the demo's tower for the three images of a sample, from the sizes of its matrices.

    Those of the convolution, of the linear maps, and of one product of the attention.
    """
    layers, width, patch, patches, embedding = 4, 128, 8, 32, 128
    tokens = patches + 1
    convolution = 2 * patches * 3 * patch**2 * width
    linear = layers * 2 * tokens * (3 + 1 + 4 + 4) * width**2 + 2 * tokens * width * embedding
    return 3 * convolution, 3 * linear, 3 * layers * 2 * tokens**2 * width


def test_flops_follow_from_the_matrix_sizes():
    flops = measured_cost("model.sfm=off").flops
    convolution, linear, product = image_tower_flops()
    assert flops.forward.by_part["image_tower"] == convolution + linear + 2 * product
    # Backward, a linear map has two products of its size, and the convolution one: pixels need no gradient.
    # The attention has four, and computes its logits once more.
    assert flops.training_step.by_part["image_tower"] == 2 * convolution + 3 * linear + 7 * product


def test_flops_of_a_step_are_those_of_its_parts():
    parts = measured_cost().flops.training_step.by_part
    assert sum(pass_flops(resolve("demo"), IDENTITIES, CAMERAS)) == pytest.approx(
        sum(parts.values()), abs=len(parts)
    )


def test_modulated_attention_is_counted_forward_and_backward():
    flops = measured_cost().flops
    convolution, linear, product = image_tower_flops()
    # It has more products than the plain attention, and not many more.
    assert 2 * product <= flops.forward.by_part["image_tower"] - convolution - linear <= 5 * product
    assert (
        6 * product
        <= flops.training_step.by_part["image_tower"] - 2 * convolution - 3 * linear
        <= 14 * product
    )


def test_parts_and_losses_make_up_the_step():
    flops = measured_cost().flops
    forward, step = flops.forward.by_part, flops.training_step.by_part
    assert set(forward) == set(step) == {*PARTS, "losses"}
    # Incidence of the 15 nodes, and distances of the features in a batch.
    assert 0 < step["losses"] < 0.001 * sum(step.values())
    # Q and K of width 128: queries and text over 32 patches in three modalities.
    queries, patches, width = 5, 32, 128
    linear = 2 * width**2 * (queries + 2 * patches + queries + 2 * 4 * queries)
    assert forward["str"] == 3 * (linear + 2 * 2 * queries * patches * width)
    assert forward["heads"] == 2 * IDENTITIES * (3 + 3 + 1) * width


def test_text_tower_counts_per_caption_if_frozen_and_per_step_if_trained():
    frozen, tuned = measured_cost(), measured_cost("model.text.fine_tune=on")
    tokens, width, embedding, layers = 77, 64, 128, 2
    caption = layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width) + 2 * width * embedding
    assert frozen.flops.caption == tuned.flops.caption == caption
    assert frozen.flops.forward.by_part["text_tower"] == 0
    assert frozen.flops.training_step.by_part["text_tower"] == 0
    assert tuned.flops.forward.by_part["text_tower"] == caption
    parameters = frozen.parameters.by_part["text_tower"]
    assert parameters.total == tuned.parameters.by_part["text_tower"].total
    assert parameters.trained == 0
    assert frozen.memory.weights < tuned.memory.weights


def test_parameters_equal_those_of_the_model_with_its_weights():
    config = resolve("demo")
    clip = load_clip(config.clip_source)
    model = STMI(config.model, clip, IDENTITIES, CAMERAS, seed=0)
    parts = dict(measured_cost().parameters.by_part)
    text = sum(p.numel() for p in clip.model.parameters()) - sum(
        p.numel() for p in clip.model.visual.parameters()
    )
    assert parts.pop("text_tower").total == text - clip.model.logit_scale.numel()
    assert sum(part.total for part in parts.values()) == sum(p.numel() for p in model.parameters())
    # The norms before the classifiers have frozen biases.
    frozen = sum(part.frozen for part in parts.values())
    assert frozen == (3 + 3 + 1) * clip.embed_dim


@pytest.mark.parametrize(
    "settings",
    [
        ["train.precision=float32"],
        ["train.precision=bfloat16"],
        ["train.precision=float32", "train.micro_batches=4"],
        ["train.precision=bfloat16", "train.micro_batches=2", "train.checkpoint_activations=on"],
    ],
)
def test_memory_equals_what_the_allocator_gives_out(settings):
    # The process measured here has no other to exchange gradients with.
    settings = ["train.workers=1", *settings]
    config, predicted = resolve("demo", settings), measured_cost(*settings).memory
    clip = untrained_clip(config)
    model = STMI(config.model, clip, IDENTITIES, CAMERAS, seed=0)
    run = DryRun(config, model, clip.model.context_length)
    run.train()
    state = run.take_step.optimizer.state.values()
    moments = sum(x.nbytes for values in state for x in values.values() if x.numel() > 1)
    assert predicted.optimizer == pytest.approx(moments, rel=0.001)
    assert predicted.gradients == sum(p.grad.nbytes for p in model.parameters() if p.requires_grad)
    embedding = allocated(lambda: run.embed(config.train.evaluation_batch))
    model.zero_grad(set_to_none=True)
    training = allocated(run.train)
    held = predicted.weights + predicted.optimizer
    assert 1 / MEMORY_FACTOR < predicted.training_peak / (held + training) < MEMORY_FACTOR
    held += predicted.gradients
    assert 1 / MEMORY_FACTOR < predicted.evaluation_peak / (held + embedding) < MEMORY_FACTOR


def allocated(function):
    """Peak of the bytes that PyTorch's allocator gave out during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_micro_batches_and_checkpointed_activations_take_less_memory_and_the_time_of_a_forward_pass():
    whole, parts = measured_cost(), measured_cost("train.micro_batches=4")
    again = measured_cost("train.checkpoint_activations=on")
    assert parts.memory.activations < 0.26 * whole.memory.activations
    assert again.memory.activations < 0.5 * whole.memory.activations
    assert parts.flops == again.flops == whole.flops


def test_more_workers_have_smaller_shares_of_the_batch_and_the_same_weights():
    two, four = measured_cost(), measured_cost("train.workers=4")
    assert (two.memory.samples, four.memory.samples) == (24, 12)
    assert two.memory.weights == four.memory.weights
    assert two.memory.activations / four.memory.activations == pytest.approx(2, rel=0.05)
    assert two.flops == four.flops


def test_disabled_module_costs_nothing():
    cost = measured_cost("model.str=off", "model.chi=off")
    for part in ("str", "chi", "fusion"):
        assert cost.parameters.by_part[part].total == 0
        assert cost.flops.forward.by_part[part] == cost.flops.training_step.by_part[part] == 0
    assert cost.flops.forward.by_part["image_tower"] == measured_cost().flops.forward.by_part["image_tower"]


def test_nothing_is_computed_and_no_weights_are_read(monkeypatch):
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("weights were read")
    )
    monkeypatch.setattr("open_clip.create_model", lambda *a, **k: pytest.fail("weights were read"))
    settings = [
        "model.clip.source=ViT-L-14-quickgelu/openai",
        "model.image.height=56",
        "model.image.width=28",
        "train.workers=36",
        "train.evaluation_batch=2",
    ]
    cost = measure_cost(resolve("rgbnt201-released", settings), 171, 4)
    # Radford et al. 2021 give ViT-L/14 and its text tower 428 M parameters.
    towers = sum(cost.parameters.by_part[part].total for part in ("image_tower", "text_tower"))
    assert towers == pytest.approx(428e6, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            ["model.clip.source=ViT-L-14-quickgelu/openai"],
            ConfigError,
            "256x128 is not a whole number of 14x14 patches; the next smaller size is 252x126",
        ),
        (["model.clip.source=RN50-quickgelu/openai"], ClipFileError, "a plain vision transformer is needed"),
        (
            ["model.clip.source=roberta-ViT-B-32/laion2b_s12b_b32k"],
            ClipFileError,
            "towers that are not CLIP's own",
        ),
        (["model.clip.source=nowhere"], ClipFileError, "'nowhere' is neither a folder nor"),
    ],
)
def test_unknown_or_unfitting_architecture_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        measure_cost(resolve("rgbnt201-paper", settings), 171, 4)
