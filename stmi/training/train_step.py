"""One optimisation step on a global batch, on any number of workers.

Every worker embeds its rows, the features are gathered, and every worker computes the same loss on the whole
batch, with ordinary batch norms. So the loss, and with it the trained model, does not depend on the number of
workers. All workers start from the same weights, which depend on the seed.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stmi.config import LossConfig, OptimConfig
from stmi.feature_modulation import ModulationStrength
from stmi.model import STMI
from stmi.model_input import ModelInput, RandomDraws
from stmi.training import losses

BUCKET_MEBIBYTES = 8
"""Gradients that the workers exchange at a time."""


class _GatherRows(torch.autograd.Function):
    """Rows of all workers, in rank order, with a gradient for the worker's own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        world_size = dist.get_world_size()
        parts = [torch.empty_like(rows) for _ in range(world_size)]
        dist.all_gather(parts, rows.contiguous())
        ctx.share, ctx.world_size = len(rows), world_size
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor) -> Tensor:
        start = dist.get_rank() * ctx.share
        # All workers compute the same loss, so this worker's gradient of its own rows is complete.
        # `DistributedDataParallel` divides by the number of workers; the factor cancels that.
        return grad_rows[start : start + ctx.share] * ctx.world_size


def gather_rows(rows: Tensor) -> Tensor:
    """Gather a tensor of the global batch, of which each worker has some rows; differentiable."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)


def distribute(module: nn.Module) -> nn.Module:
    """Wrap a module so that its backward pass averages the gradients over the workers, if there are several.

    Gradients are exchanged in buckets while the backward pass still computes others. After the first step of
    a process, `DistributedDataParallel` would regroup its buckets, so that a resumed run with three or more
    workers would sum in another order than an uninterrupted one; where it looks for unused parameters it
    does not.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return module
    # Buffers are statistics of the global batch, which every worker computes for itself.
    return DistributedDataParallel(
        module,
        bucket_cap_mb=BUCKET_MEBIBYTES,
        find_unused_parameters=True,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )


class GlobalBatchLoss(nn.Module):
    """STMI and its objective on the global batch.

    Args:
        model: The network.
        config: The objective's weights.
        autocast: Whether the network runs under bfloat16 autocast; losses are always float32.
        compiled: Whether the network is compiled. Evaluation is not: its batches have other sizes, and each
            size would need its own compilation.
    """

    def __init__(self, model: STMI, config: LossConfig, autocast: bool, compiled: bool = False) -> None:
        super().__init__()
        # Buckets are filled from the last parameter to the first, and exchanged in that order. The gradient
        # of alpha and beta is complete only after the first layer's, and would hold up all others.
        self.modulation = model.image_tower.modulation
        self.model = model
        self.config = config
        self.autocast = autocast
        self.run_model = model.forward
        if compiled:
            self.run_model = torch.compile(model.forward, fullgraph=True, dynamic=False)

    def forward(self, batch: ModelInput, draws: RandomDraws, labels: Tensor) -> dict[str, Tensor]:
        """The loss of the global batch and its parts; `batch` and `labels` are this worker's rows.

        With a hypergraph, `incidence_density` is one of the parts.
        """
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.run_model(batch, draws)
        trained = features.retrieval()
        gathered = {name: gather_rows(trained[name]) for name in self.model.heads}
        parts = losses.objective(self.config, gathered, self.model.logits(gathered), gather_rows(labels))
        if features.hyperedges is not None:
            parts["incidence_density"] = gather_rows(features.hyperedges.density).mean()
        return parts


class TrainStep:
    """The optimiser and one step of it.

    Args:
        model: The network, on its device.
        loss: Weights of the objective.
        optim: The optimiser and its rates.
        autocast: Run the network under bfloat16 autocast.
        compiled: Compile the network.
    """

    def __init__(
        self, model: STMI, loss: LossConfig, optim: OptimConfig, autocast: bool, compiled: bool = False
    ) -> None:
        self.config = optim
        self.model = model
        self.module = distribute(GlobalBatchLoss(model, loss, autocast, compiled))
        self.optimizer = build_optimizer(model, optim)

    def __call__(
        self, batch: ModelInput, draws: RandomDraws, labels: Tensor, rate: float
    ) -> dict[str, Tensor]:
        """Take one step at a learning rate; returns the losses before the step, as detached scalars."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.module(batch, draws, labels)
        parts["total"].backward()
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return {name: value.detach() for name, value in parts.items()}


def build_optimizer(model: STMI, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW, with alpha and beta of SFM as a separate parameter group."""
    strengths = [p for m in model.modules() if isinstance(m, ModulationStrength) for p in m.parameters()]
    apart = {id(parameter) for parameter in strengths}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    groups = [
        {"params": others, "rate_factor": 1.0},
        {
            "params": strengths,
            "rate_factor": config.modulation_rate_factor,
            "weight_decay": config.modulation_weight_decay,
        },
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
