"""What a run costs: its parameters, the FLOPs of a sample, and the memory of a worker.

The run's own model and training step are measured with fake tensors, which have a shape and no content, so
the largest model takes a few seconds and no memory. FLOPs are those of matrix products, convolutions and
attention; a multiply-add counts as two. Elementwise operations are not counted, as is usual.
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

from data_catalog.records import Record
from experiments.planning.dry_run import DryRun, untrained_clip
from experiments.recipes import ExperimentConfig
from experiments.run.preflight import check_settings
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
"""Each part, and its module in `STMI`."""

OPTIMIZER_VALUES = 2
"""Adam keeps two running means for each trained value."""


class ParameterCount(Record):
    """How many parameters a part has."""

    total: int
    trained: int
    frozen: int

    @classmethod
    def from_modules(cls, *modules: nn.Module | None) -> "ParameterCount":
        """The parameters of some modules; None has none."""
        values = [value for module in modules if module is not None for value in module.parameters()]
        trained = sum(value.numel() for value in values if value.requires_grad)
        total = sum(value.numel() for value in values)
        return cls(total=total, trained=trained, frozen=total - trained)


class ModelParameters(ParameterCount):
    """How many parameters a model has."""

    by_part: dict[str, ParameterCount]
    """The frozen text tower is included, although training does not load it."""


class PartialFlops(Record):
    """FLOPs of one sample."""

    total: int
    by_part: dict[str, int]
    """`losses` are those that belong to no part."""


class Flops(Record):
    """FLOPs of one sample in each kind of computation."""

    forward: PartialFlops
    training_step: PartialFlops
    """Forward and backward."""
    caption: int
    """Of encoding a caption with the frozen text tower: once per caption, not in training."""


class Memory(Record):
    """Bytes of one worker, without those of its process and the waste of its allocator."""

    weights: int
    """Parameters and buffers."""
    gradients: int
    """Of the trained parameters."""
    optimizer: int
    """Running means of the optimiser."""
    batch: int
    """The worker's share of a batch, augmented."""
    activations: int
    """What a forward pass keeps for the backward pass."""
    training_peak: int
    """Peak in a training step. It is not the sum of the above: activations are freed as gradients grow."""
    evaluation_peak: int
    """Peak while test samples are embedded."""
    peak: int
    """Peak of the whole run."""
    samples: int
    """The worker's samples of a batch."""


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        parameters: Of the model.
        flops: Of one sample.
        memory: Of one worker.
    """

    parameters: ModelParameters
    flops: Flops
    memory: Memory


def measure_cost(config: ExperimentConfig, identities: int, cameras: int) -> Cost:
    """Measure what a run costs; reads no weights and no data.

    Args:
        config: The run.
        identities: Number of training identities.
        cameras: Number of cameras of the data set.

    Raises:
        ClipFileError: The architecture of the CLIP is unknown.
        ConfigError: The config does not fit it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = untrained_clip(config)
        check_settings(config, clip)
        model = STMI(config.model, clip, identities, cameras, config.seed)
        length = clip.model.context_length
        flops = _count_flops(DryRun(_with_small_batch(config), model, length), clip)
        model.zero_grad(set_to_none=True)
        return Cost(_count_parameters(model, clip), flops, _measure_memory(DryRun(config, model, length)))


def step_flops(config: ExperimentConfig, identities: int, cameras: int) -> int:
    """FLOPs of one sample in a training step, over all parts: faster, for the comparison of many configs.

    Args:
        config: The run, known to fit its CLIP.
        identities: Number of training identities.
        cameras: Number of cameras of the data set.

    Raises:
        ClipFileError: The architecture of the CLIP is unknown.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip = untrained_clip(config)
        model = STMI(config.model, clip, identities, cameras, config.seed)
        run = DryRun(_with_small_batch(config), model, clip.model.context_length)
        batch, loss = run.batch(), run.take_step.module
        return sum(_count_forward_and_backward(lambda: loss(*batch)["total"])) // run.share


def _with_small_batch(config: ExperimentConfig) -> ExperimentConfig:
    """A config with a small batch.

    The FLOPs of a sample depend on the size of the batch only through the distances of the triplet loss.
    """
    return config.model_copy(
        update={
            "batch": BatchConfig(size=4, samples_per_identity=2),
            "train": config.train.model_copy(update={"workers": 1}),
        }
    )


def _count_parameters(model: STMI, clip: LoadedClip) -> ModelParameters:
    parts = {part: ParameterCount.from_modules(getattr(model, module)) for part, module in PARTS.items()}
    if model.text_tower is None:
        # The temperature of CLIP's own training belongs to neither tower.
        frozen = sum(
            value.numel()
            for name, value in clip.model.named_parameters()
            if not name.startswith("visual.") and name != "logit_scale"
        )
        parts["text_tower"] = ParameterCount(total=frozen, trained=0, frozen=frozen)
    total, trained = sum(part.total for part in parts.values()), sum(part.trained for part in parts.values())
    return ModelParameters(total=total, trained=trained, frozen=total - trained, by_part=parts)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that exist while the mode is active.

    Attributes:
        now: Bytes at the moment.
        peak: The maximum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._storages: set[int] = set()

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors until they are freed; tensors that share memory count once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self._storages:
                self._storages.add(id(storage))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._remove, id(storage), storage.nbytes())

    def _remove(self, storage: int, count: int) -> None:
        self._storages.remove(storage)
        self.now -= count

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def _measure_memory(run: DryRun) -> Memory:
    config, model = run.config, run.model
    with LiveBytes() as live:
        live.add([*model.parameters(), *model.buffers()])
        weights = live.now
        batch = run.batch()
        batch_bytes = live.now - weights
        losses = run.take_step.module(*batch)
        activations = live.now - weights - batch_bytes
        losses["total"].backward()
        training = live.peak
        del batch, losses
        live.peak = live.now
        run.embed(config.train.evaluation_batch)
        evaluation = live.peak
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    optimizer = OPTIMIZER_VALUES * sum(p.nbytes for p in trained)
    # Several workers exchange a copy of their gradients.
    exchange = weights + gradients * (2 if config.train.workers > 1 else 1)
    training_peak = max(training, exchange) + optimizer
    evaluation_peak = evaluation + optimizer
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        batch=batch_bytes,
        activations=activations,
        training_peak=training_peak,
        evaluation_peak=evaluation_peak,
        peak=max(training_peak, evaluation_peak),
        samples=run.share,
    )


def _count_flops(run: DryRun, clip: LoadedClip) -> Flops:
    batch, loss = run.batch(), run.take_step.module
    calls: list[tuple[str, Callable[[], Tensor]]] = []

    def record_call(part: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        detached = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in inputs]
        calls.append((part, lambda: module(*detached)))

    hooks = [
        module.register_forward_pre_hook(partial(record_call, part))
        for part, module in _called_modules(run.model)
    ]
    whole = _count_forward_and_backward(lambda: loss(*batch)["total"])
    for hook in hooks:
        hook.remove()
    forward, backward = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    # The counter does not know to which part a backward operation belongs, so each part runs again by itself,
    # on the same inputs.
    for part, call in calls:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.autocast):
            counts = _count_forward_and_backward(call)
        forward[part], backward[part] = forward[part] + counts[0], backward[part] + counts[1]
    forward["losses"], backward["losses"] = (
        count - sum(parts.values()) for count, parts in zip(whole, (forward, backward), strict=True)
    )
    step = {part: forward[part] + backward[part] for part in forward}
    return Flops(
        forward=_per_sample(forward, run.share),
        training_step=_per_sample(step, run.share),
        caption=_count_caption(clip),
    )


def _per_sample(counts: Mapping[str, int], samples: int) -> PartialFlops:
    by_part = {part: count // samples for part, count in counts.items()}
    return PartialFlops(total=sum(by_part.values()), by_part=by_part)


def _called_modules(model: STMI) -> list[tuple[str, nn.Module]]:
    """The modules that a forward pass calls, each with its part."""
    modules = {part: getattr(model, name) for part, name in PARTS.items()}
    return [
        (part, module)
        for part, found in modules.items()
        for module in (found.children() if isinstance(found, nn.ModuleDict) else [found])
        if module is not None
    ]


def _count_forward_and_backward(forward: Callable[[], Tensor]) -> tuple[int, int]:
    with _flop_counter() as forward_counter:
        result = forward()
    with _flop_counter() as backward_counter:
        result.backward(torch.ones_like(result))
    return forward_counter.get_total_flops(), backward_counter.get_total_flops()


def _count_caption(clip: LoadedClip) -> int:
    # In evaluation mode PyTorch uses a fused operation, which the counter does not know.
    text = clip.model.train()
    with torch.no_grad(), _flop_counter() as counter:
        text.encode_text(torch.zeros(1, text.context_length, dtype=torch.int64))
    text.eval()
    return counter.get_total_flops()


def _flop_counter() -> FlopCounterMode:
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
    grad_output: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any, **named: Any
) -> int:
    return int(sdpa_backward_flop_count(grad_output, query, key, value))
