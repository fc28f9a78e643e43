"""How fast the parts of training are at the published size: a whole step, the attention, the augmentation.

On a GPU where there is one. The memory is that of the process, not of the GPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.measuring import BenchmarkReport, Measurement, measure, measure_in_turns
from stmi.clip.loading import LoadedClip
from stmi.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig
from stmi.feature_modulation import modulated_attention
from stmi.kernels import forms
from stmi.kernels.capabilities import cpu_multiplies_bfloat16
from stmi.model import STMI
from stmi.model_input import ModelInput
from stmi.training import augment
from stmi.training.train_step import TrainStep, build_optimizer

SIZE = (256, 128)
"""Height and width of the published images."""
HEADS, HEAD_WIDTH = 12, 64
"""Of ViT-B/16."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SAMPLES = 64 if DEVICE.type == "cuda" else 8
"""Samples of a step; the published batch has 64."""
PRECISION = torch.bfloat16 if DEVICE.type == "cuda" or cpu_multiplies_bfloat16() else torch.float32
DTYPE = str(PRECISION).removeprefix("torch.")

Shape = tuple[int, ...]
Product = tuple[Shape, Shape]
"""Shapes of the operands of a matrix product."""

_LEFT_OPERAND = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""PyTorch's matrix products, and the position of the left operand in their arguments."""


def train_step(repeats: int) -> BenchmarkReport:
    """A whole optimisation step at the published size, against the time of its matrix products alone."""
    samples = SAMPLES
    model = _published_model()
    shapes = ((samples, 3, 3, *SIZE), (samples, model.grid[0] * model.grid[1]), (samples, 512))
    images, foreground, text = _random_tensors(*shapes)
    batch = ModelInput(images, foreground, text, torch.arange(samples, device=DEVICE) % 4)
    labels = torch.arange(samples, device=DEVICE) // 4
    draws = model.random_draws(0, 0, 0, samples, slice(0, samples))

    # Both steps share one optimiser state; a second one would count as memory of a step.
    optimizer = build_optimizer(model, OptimConfig())

    def make_step(compiled: bool) -> Callable[[], Any]:
        take_step = TrainStep(
            model, LossConfig(), OptimConfig(), autocast=torch.bfloat16 == PRECISION, compiled=compiled
        )
        take_step.optimizer = optimizer
        return _finished(lambda: take_step(batch, draws, labels, 1e-6))

    def make_floor() -> Callable[[], Any]:
        # The floor does not include what the modulated attention computes for alpha and beta alone: the
        # gradient of its logits times the keys, the foreground's keys, and a column that marks the
        # foreground.
        tokens, width = 1 + model.grid[0] * model.grid[1], HEAD_WIDTH
        for_strength = (tokens, tokens), (tokens, 2 * width + 1)
        products = find_products(make_step(compiled=False), for_strength)
        settings["matrix_products"] = len(products)
        return _multiplication(products)

    settings: dict[str, Any] = {"model": "ViT-B/16", "image": SIZE, "samples": samples, "dtype": DTYPE}
    variants: dict[str, Callable[[], Callable[[], Any]]] = {
        f"eager step, {DTYPE}": partial(make_step, compiled=False),
        f"compiled step, {DTYPE}": partial(make_step, compiled=True),
        # The last one, so that its operands do not count as memory of a step.
        f"matrix products alone, {DTYPE}": make_floor,
    }
    eager, compiled, floor = measure_in_turns(variants, repeats, samples)
    results = floor, eager.compared_with(floor), compiled.compared_with(floor)
    return _report("train-step", settings, *results)


def find_products(
    function: Callable[[], Any], excluded: tuple[tuple[int, int], tuple[int, int]] | None = None
) -> list[Product]:
    """The operand shapes of all matrix products of a function, in order.

    Args:
        function: Is called once.
        excluded: Shapes of two matrices; products of them are not included.

    Returns:
        Without products whose left operand has one row: those are sums.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        function()
    products = []
    for event in sorted(recorded.events(), key=lambda event: event.time_range.start):
        if event.name in _LEFT_OPERAND:
            left, right = event.input_shapes[_LEFT_OPERAND[event.name] :][:2]
            products.append((tuple(left), tuple(right)))
    return [(left, right) for left, right in products if left[-2] > 1 and (left[-2:], right[-2:]) != excluded]


def _multiplication(products: list[Product]) -> Callable[[], None]:
    # In the order of the step, each product with its own operands, as in the step: caches help no more.
    operands = [_random_tensors(*pair, dtype=PRECISION) for pair in products]

    def multiply() -> None:
        for a, b in operands:
            a @ b

    return _finished(multiply)


def _finished(function: Callable[[], Any]) -> Callable[[], Any]:
    """The same function; it returns when a GPU has done its work."""

    def finish() -> Any:
        result = function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    return finish


def attention(repeats: int) -> BenchmarkReport:
    """The modulated attention, forward and backward, against PyTorch's plain one, at three image sizes.

    Once with its own backward pass, which is the default, and once compiled, as with `train.compile`. Memory
    is what the forward pass keeps for the backward pass, in `kept_bytes`, and `kept_ratio` to the plain one.
    """

    def attend(projected: Tensor, *others: Any) -> Tensor:
        form = forms.choose(forms.MODULATED_ATTENTION, modulated_attention, projected)
        return form(projected, *others)

    def attend_plainly(projected: Tensor, *others: Any) -> Tensor:
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    compiled = torch.compile(attend, fullgraph=True, dynamic=False)
    results: list[Measurement] = []
    for tokens, images in ((129, 24), (513, 6), (1025, 3)):
        # As a layer projects them: SDPA uses views of it, so neither variant needs another layout.
        projected, grad_output = _random_tensors(
            (images, tokens, 3, HEADS, HEAD_WIDTH), (images, tokens, HEADS, HEAD_WIDTH), dtype=PRECISION
        )
        projected.requires_grad_()
        foreground = _random_tensors((images, tokens))[0] < 0.4
        alpha, beta = (torch.full((1, 1, 1), 0.1, device=DEVICE, requires_grad=True) for _ in range(2))
        forwards = {
            name: partial(form, projected, foreground, alpha, beta, 1 / 8)
            for name, form in (
                (f"plain attention, {tokens} tokens", attend_plainly),
                (f"modulated attention, {tokens} tokens", attend),
                (f"modulated attention, compiled, {tokens} tokens", compiled),
            )
        }
        variants = {name: partial(_training, forward, grad_output) for name, forward in forwards.items()}
        base, *others = (
            found.model_copy(update={"kept_bytes": _kept_bytes(forwards[found.variant])})
            for found in measure_in_turns(variants, repeats, images)
        )
        results.append(base)
        for other in others:
            kept_ratio = (other.kept_bytes or 0) / (base.kept_bytes or 1)
            results.append(other.compared_with(base).model_copy(update={"kept_ratio": kept_ratio}))
    return _report("attention", {"heads": HEADS, "head_width": HEAD_WIDTH, "dtype": DTYPE}, *results)


def _training(forward: Callable[[], Tensor], grad_output: Tensor) -> Callable[[], Any]:
    return _finished(lambda: forward().backward(grad_output))


def _kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def record(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        forward()
    return sum(kept.values())


def augmentation(repeats: int) -> BenchmarkReport:
    """From uint8 to the model's input: flip, padded crop, erasing, normalisation."""
    samples, config = 72, AugmentConfig()
    random = np.random.default_rng(0)
    pixels, mask = (
        torch.from_numpy(random.integers(0, 256, (samples, *shape), dtype=np.uint8)).to(DEVICE)
        for shape in ((3, 3, *SIZE), SIZE)
    )

    def augment_batch() -> None:
        geometry = augment.sample_geometry(config, samples, SIZE, 0, 0, 0)
        _, moved = augment.augment(pixels, mask, geometry, config.crop_padding)
        augment.patch_foreground(moved, 16)

    base = measure("normalisation alone", _finished(lambda: augment.normalise(pixels)), repeats, samples)
    whole = measure("augmentation", _finished(augment_batch), repeats, samples)
    return _report("augment", {"image": SIZE, "samples": samples}, base, whole.compared_with(base))


def _published_model() -> STMI:
    tower = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)
    clip = LoadedClip(tower, None, "random ViT-B-16", "")
    return STMI(ModelConfig(), clip, identities=171, cameras=4, seed=0).to(DEVICE).train()


def _random_tensors(*shapes: Shape, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def _report(name: str, settings: dict[str, Any], *results: Measurement) -> BenchmarkReport:
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    settings = settings | {"device": device, "threads": torch.get_num_threads()}
    return BenchmarkReport(name=name, settings=settings, results=results)
