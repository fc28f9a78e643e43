"""What a run costs: its parameters, the FLOPs of a sample, and the memory of a worker.

All is measured on the run's own model and step, with tensors that have shapes and no content, so that the
largest model costs a few seconds and no memory. FLOPs are those of matrix products, convolutions and
attention, a multiply-add counting two; what works element by element is not counted, as is usual.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from experiments.planning.fresh_clip import fresh_clip
from experiments.planning.rehearsal import Rehearsal
from experiments.recipes import ExperimentConfig
from experiments.run import run_data
from stmi.clip.loading import LoadedClip
from stmi.config import BatchConfig
from stmi.model import STMI

PARTS = {
    "image_tower": "image_tower",
    "text_tower": "text_tower",
    "str": "reallocation",
    "chi": "interaction",
    "fusion": "fusion",
    "heads": "heads",
}
"""Each part, and the module of `STMI` that it is."""

OPTIMIZER_VALUES = 2
"""Adam keeps two running means for each trained value."""


@dataclass(frozen=True)
class Parameters:
    """How many values a part has, and how many of them are trained."""

    total: int
    trained: int

    @classmethod
    def of(cls, module: nn.Module | None) -> "Parameters":
        """Those of a module; none where there is none."""
        values = [] if module is None else list(module.parameters())
        return cls(sum(p.numel() for p in values), sum(p.numel() for p in values if p.requires_grad))


@dataclass(frozen=True)
class Flops:
    """FLOPs of one sample.

    Attributes:
        forward: By part.
        step: Of a training step, forward and backward, by part; `losses` is what belongs to none.
        caption: Of encoding a caption with the frozen text tower, once per caption and not in training.
    """

    forward: dict[str, int]
    step: dict[str, int]
    caption: int


@dataclass(frozen=True)
class Memory:
    """Bytes that a worker holds; those of its process and the waste of its allocator come on top.

    Attributes:
        weights: Parameters and buffers.
        gradients: Of the trained weights.
        optimizer: Its running means.
        batch: The worker's share of a batch, augmented.
        activations: What a forward pass keeps for the backward pass.
        training_peak: The most at one time in a training step. Gradients grow while activations go, so it is
            not the sum of the above.
        evaluation_peak: The most at one time while test samples are embedded.
    """

    weights: int
    gradients: int
    optimizer: int
    batch: int
    activations: int
    training_peak: int
    evaluation_peak: int

    @property
    def peak(self) -> int:
        """The most at one time in the whole run."""
        return max(self.training_peak, self.evaluation_peak)


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        parameters: By part; the frozen text tower is counted, though training does not load it.
        flops: Of one sample.
        memory: Of one worker.
        share: Samples of a batch that are one worker's.
    """

    parameters: dict[str, Parameters]
    flops: Flops
    memory: Memory
    share: int


def measure_cost(config: ExperimentConfig, identities: int, cameras: int) -> Cost:
    """Count what a run costs; reads no weights and no data.

    Args:
        config: The run.
        identities: Training identities.
        cameras: Cameras of the data set.

    Raises:
        ClipFileError: The CLIP's architecture is not known.
        ConfigError: The config does not fit it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = fresh_clip(run_data.clip_source(config))
        run_data.check_settings(config, clip)
        model = STMI(config.model, clip, identities, cameras, config.seed)
        flops = _count_flops(Rehearsal(_few_samples(config), model, clip.model.context_length), clip)
        model.zero_grad(set_to_none=True)
        rehearsal = Rehearsal(config, model, clip.model.context_length)
        return Cost(_parameters(model, clip), flops, _measure_memory(rehearsal), rehearsal.share)


def step_flops(config: ExperimentConfig, identities: int, cameras: int) -> int:
    """FLOPs of one sample of a training step, over all parts: quicker where many configs are compared.

    Args:
        config: The run, known to fit its CLIP.
        identities: Training identities.
        cameras: Cameras of the data set.

    Raises:
        ClipFileError: The CLIP's architecture is not known.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = fresh_clip(run_data.clip_source(config))
        model = STMI(config.model, clip, identities, cameras, config.seed)
        rehearsal = Rehearsal(_few_samples(config), model, clip.model.context_length)
        batch, loss = rehearsal.batch(), rehearsal.take_step.module
        return sum(_forward_and_backward(lambda: loss(*batch)["total"])) // rehearsal.share


def _few_samples(config: ExperimentConfig) -> ExperimentConfig:
    """A config with a small batch: what a sample costs hardly depends on the others.

    Only the distances of the triplet loss do.
    """
    return config.model_copy(
        update={
            "batch": BatchConfig(size=4, samples_per_identity=2),
            "train": config.train.model_copy(update={"workers": 1}),
        }
    )


def _parameters(model: STMI, clip: LoadedClip) -> dict[str, Parameters]:
    parts = {part: Parameters.of(getattr(model, module)) for part, module in PARTS.items()}
    if model.text_tower is None:
        frozen = Parameters.of(clip.model).total - Parameters.of(clip.model.visual).total
        # The temperature of CLIP's own training belongs to neither tower.
        parts["text_tower"] = Parameters(frozen - clip.model.logit_scale.numel(), 0)
    return parts


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that live while it is on.

    Attributes:
        now: Bytes held at the moment.
        most: The most that were held at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self._held: set[int] = set()

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors until they are freed; those that share memory count once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._held:
                self._held.add(id(storage))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._remove, id(storage), storage.nbytes())

    def _remove(self, storage: int, count: int) -> None:
        self._held.remove(storage)
        self.now -= count

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def _measure_memory(rehearsal: Rehearsal) -> Memory:
    config, model = rehearsal.config, rehearsal.model
    with LiveBytes() as live:
        live.add([*model.parameters(), *model.buffers()])
        weights = live.now
        batch = rehearsal.batch()
        of_batch = live.now - weights
        losses = rehearsal.take_step.module(*batch)
        activations = live.now - weights - of_batch
        losses["total"].backward()
        training = live.most
        del batch, losses
        live.most = live.now
        rehearsal.embed(config.train.evaluation_batch)
        evaluation = live.most
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    optimizer = OPTIMIZER_VALUES * sum(p.nbytes for p in trained)
    # Several workers exchange their gradients in a copy.
    exchange = weights + gradients * (2 if config.train.workers > 1 else 1)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        batch=of_batch,
        activations=activations,
        training_peak=max(training, exchange) + optimizer,
        evaluation_peak=evaluation + optimizer,
    )


def _count_flops(rehearsal: Rehearsal, clip: LoadedClip) -> Flops:
    batch, loss, samples = rehearsal.batch(), rehearsal.take_step.module, rehearsal.share
    calls: list[tuple[str, Callable[[], Tensor]]] = []

    def remember(part: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        apart = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in inputs]
        calls.append((part, lambda: module(*apart)))

    hooks = [
        module.register_forward_pre_hook(partial(remember, part)) for part, module in _called(rehearsal.model)
    ]
    whole = _forward_and_backward(lambda: loss(*batch)["total"])
    for hook in hooks:
        hook.remove()
    forward, backward = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    # The counter cannot tell which part a backward operation belongs to, so each part runs by itself on what
    # it was given.
    for part, call in calls:
        with torch.autocast(rehearsal.device.type, torch.bfloat16, enabled=rehearsal.autocast):
            counts = _forward_and_backward(call)
        forward[part], backward[part] = forward[part] + counts[0], backward[part] + counts[1]
    forward["losses"], backward["losses"] = (
        count - sum(parts.values()) for count, parts in zip(whole, (forward, backward), strict=True)
    )
    return Flops(
        forward={part: count // samples for part, count in forward.items()},
        step={part: (forward[part] + backward[part]) // samples for part in forward},
        caption=_count_caption(clip),
    )


def _called(model: STMI) -> list[tuple[str, nn.Module]]:
    """The modules that a forward pass calls, each with the part that it belongs to."""
    modules = {part: getattr(model, name) for part, name in PARTS.items()}
    return [
        (part, module)
        for part, found in modules.items()
        for module in (found.children() if isinstance(found, nn.ModuleDict) else [found])
        if module is not None
    ]


def _forward_and_backward(forward: Callable[[], Tensor]) -> tuple[int, int]:
    with _counter() as of_forward:
        result = forward()
    with _counter() as of_backward:
        result.backward(torch.ones_like(result))
    return of_forward.get_total_flops(), of_backward.get_total_flops()


def _count_caption(clip: LoadedClip) -> int:
    # In evaluation PyTorch takes a fused path, of which the counter sees nothing.
    text = clip.model.train()
    with torch.no_grad(), _counter() as counter:
        text.encode_text(torch.zeros(1, text.context_length, dtype=torch.int64))
    text.eval()
    return counter.get_total_flops()


def _counter() -> FlopCounterMode:
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        # The counter knows the attention of GPUs only.
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
        },
    )


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any, **named: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))
