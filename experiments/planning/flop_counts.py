"""FLOPs of one sample, by part of the model.

They are those of matrix products, convolutions and attention; a multiply-add counts as two. Elementwise
operations are not counted, as is usual.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from data_catalog.records import Record
from experiments.experiment_config import ExperimentConfig
from experiments.planning.dry_run import DryRun, untrained_clip
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


def pass_flops(config: ExperimentConfig, identities: int, cameras: int) -> tuple[int, int]:
    """FLOPs of one sample in a forward and in a backward pass, over all parts: faster, for many configs.

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
        run = DryRun(with_small_batch(config), model, clip.model.context_length)
        batch, loss = run.batch(), run.take_step.module
        forward, backward = _count_forward_and_backward(lambda: loss(*batch)["total"])
    return forward // run.share, backward // run.share


def with_small_batch(config: ExperimentConfig) -> ExperimentConfig:
    """A config with a small batch, which is enough to count FLOPs.

    The FLOPs of a sample depend on the size of the batch only through the distances of the triplet loss.
    """
    return config.model_copy(
        update={
            "batch": BatchConfig(size=4, samples_per_identity=2),
            "train": config.train.model_copy(
                update={"workers": 1, "micro_batches": 1, "checkpoint_activations": False}
            ),
        }
    )


def count_flops(run: DryRun, clip: LoadedClip) -> Flops:
    """Count the FLOPs of one sample in a dry run, and those of a caption."""
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
