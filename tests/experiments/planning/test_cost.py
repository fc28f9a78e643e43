from functools import cache

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from experiments.planning.cost import PARTS, measure_cost, step_flops
from experiments.planning.fresh_clip import fresh_clip
from experiments.planning.rehearsal import Rehearsal
from experiments.recipes import ConfigError, resolve
from experiments.run import run_data
from stmi.clip.loading import ClipFileError, load_clip
from stmi.model import STMI

IDENTITIES, CAMERAS = 60, 4
MEMORY_FACTOR = 1.1
"""How far the memory that is foretold may be from what PyTorch's allocator gives out."""


@cache
def cost_of(*settings):
    return measure_cost(resolve("demo", list(settings)), IDENTITIES, CAMERAS)


def image_tower_flops():
    """Of the demo's tower, forward, for the three images of a sample, by the sizes of its matrices.

    The convolution, the linear maps, and one product of the attention.
    """
    layers, width, patch, patches, embedding = 4, 128, 8, 32, 128
    tokens = patches + 1
    convolution = 2 * patches * 3 * patch**2 * width
    linear = layers * 2 * tokens * (3 + 1 + 4 + 4) * width**2 + 2 * tokens * width * embedding
    return 3 * convolution, 3 * linear, 3 * layers * 2 * tokens**2 * width


def test_flops_are_those_of_the_matrix_sizes():
    flops = cost_of("model.sfm=off").flops
    convolution, linear, product = image_tower_flops()
    assert flops.forward["image_tower"] == convolution + linear + 2 * product
    # Backward, a linear map has two products of its size, and the convolution one: pixels want no gradient.
    # The attention has four, and computes its logits once more.
    assert flops.step["image_tower"] == 2 * convolution + 3 * linear + 7 * product


def test_flops_of_a_step_are_those_of_its_parts():
    parts = cost_of().flops.step
    assert step_flops(resolve("demo"), IDENTITIES, CAMERAS) == pytest.approx(
        sum(parts.values()), abs=len(parts)
    )


def test_modulated_attention_is_counted_forward_and_backward():
    flops = cost_of().flops
    convolution, linear, product = image_tower_flops()
    # It has more products than the plain attention, and not many more.
    assert 2 * product <= flops.forward["image_tower"] - convolution - linear <= 5 * product
    assert 6 * product <= flops.step["image_tower"] - 2 * convolution - 3 * linear <= 14 * product


def test_parts_make_up_the_step_but_for_the_losses():
    flops = cost_of().flops
    assert set(flops.forward) == set(flops.step) == {*PARTS, "losses"}
    # Incidence of the 15 nodes, and distances of the features in a batch.
    assert 0 < flops.step["losses"] < 0.001 * sum(flops.step.values())
    # Q and K of width 128: queries and text over 32 patches in three modalities.
    queries, patches, width = 5, 32, 128
    linear = 2 * width**2 * (queries + 2 * patches + queries + 2 * 4 * queries)
    assert flops.forward["str"] == 3 * (linear + 2 * 2 * queries * patches * width)
    assert flops.forward["heads"] == 2 * IDENTITIES * (3 + 3 + 1) * width


def test_text_tower_counts_once_per_caption_where_it_is_frozen_and_in_every_step_where_it_is_not():
    frozen, tuned = cost_of(), cost_of("model.text.fine_tune=on")
    tokens, width, embedding, layers = 77, 64, 128, 2
    caption = layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width) + 2 * width * embedding
    assert frozen.flops.caption == tuned.flops.caption == caption
    assert frozen.flops.forward["text_tower"] == frozen.flops.step["text_tower"] == 0
    assert tuned.flops.forward["text_tower"] == caption
    assert frozen.parameters["text_tower"].total == tuned.parameters["text_tower"].total
    assert (frozen.parameters["text_tower"].trained, frozen.memory.weights < tuned.memory.weights) == (
        0,
        True,
    )


def test_parameters_are_those_of_the_model_with_its_weights():
    config = resolve("demo")
    clip = load_clip(run_data.clip_source(config))
    model = STMI(config.model, clip, IDENTITIES, CAMERAS, seed=0)
    parts = dict(cost_of().parameters)
    text = sum(p.numel() for p in clip.model.parameters()) - sum(
        p.numel() for p in clip.model.visual.parameters()
    )
    assert parts.pop("text_tower").total == text - clip.model.logit_scale.numel()
    assert sum(part.total for part in parts.values()) == sum(p.numel() for p in model.parameters())
    # The norms before the classifiers have frozen biases.
    frozen = sum(part.total - part.trained for part in parts.values())
    assert frozen == (3 + 3 + 1) * clip.embed_dim


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_is_what_the_allocator_gives_out(precision):
    setting = f"train.precision={precision}"
    config, foretold = resolve("demo", [setting]), cost_of(setting).memory
    clip = fresh_clip(run_data.clip_source(config))
    model = STMI(config.model, clip, IDENTITIES, CAMERAS, seed=0)
    rehearsal = Rehearsal(config, model, clip.model.context_length)
    rehearsal.train()
    state = rehearsal.take_step.optimizer.state.values()
    moments = sum(x.nbytes for of_one in state for x in of_one.values() if x.numel() > 1)
    assert foretold.optimizer == pytest.approx(moments, rel=0.001)
    assert foretold.gradients == sum(p.grad.nbytes for p in model.parameters() if p.requires_grad)
    embedding = allocated(lambda: rehearsal.embed(config.train.evaluation_batch))
    model.zero_grad(set_to_none=True)
    training = allocated(rehearsal.train)
    held = foretold.weights + foretold.optimizer
    assert 1 / MEMORY_FACTOR < foretold.training_peak / (held + training) < MEMORY_FACTOR
    held += foretold.gradients
    assert 1 / MEMORY_FACTOR < foretold.evaluation_peak / (held + embedding) < MEMORY_FACTOR


def allocated(work):
    """The most bytes that PyTorch's allocator had given out at one time during some work."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_more_workers_hold_a_smaller_share_of_the_batch_and_the_same_weights():
    two, four = cost_of(), cost_of("train.workers=4")
    assert (two.share, four.share) == (24, 12)
    assert two.memory.weights == four.memory.weights
    assert two.memory.activations / four.memory.activations == pytest.approx(2, rel=0.05)
    assert two.flops == four.flops


def test_module_that_is_switched_off_costs_nothing():
    cost = cost_of("model.str=off", "model.chi=off")
    for part in ("str", "chi", "fusion"):
        assert (cost.parameters[part].total, cost.flops.forward[part], cost.flops.step[part]) == (0, 0, 0)
    assert cost.flops.forward["image_tower"] == cost_of().flops.forward["image_tower"]


def test_nothing_is_computed_and_no_weights_are_read(monkeypatch):
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("asked for weights")
    )
    monkeypatch.setattr("open_clip.create_model", lambda *a, **k: pytest.fail("asked for weights"))
    settings = [
        "model.clip.source=ViT-L-14-quickgelu/openai",
        "model.image.height=252",
        "model.image.width=126",
        "train.workers=36",
        "train.evaluation_batch=2",
    ]
    cost = measure_cost(resolve("rgbnt201-released", settings), 171, 4)
    # Radford et al. 2021 give ViT-L/14 and its text tower 428 M parameters.
    towers = cost.parameters["image_tower"].total + cost.parameters["text_tower"].total
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
def test_architecture_that_is_not_known_or_does_not_fit_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        measure_cost(resolve("rgbnt201-paper", settings), 171, 4)
