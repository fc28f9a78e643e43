"""One optimisation step on a global batch, on any number of workers.

Every worker embeds its rows, the features are gathered, and every worker computes the same loss on
the whole batch, with ordinary batch norms. So the loss, and with it the trained model, does not
depend on how many workers there are. They start from the same weights, which are keyed by the seed.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from stmi.config import LossConfig, OptimConfig
from stmi.feature_modulation import ModulationStrength
from stmi.model import STMI, ModelInput, ModelNoise
from stmi.training import losses


class _GatherRows(torch.autograd.Function):
    """Rows of all workers, in rank order, with a gradient for the own ones."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        world_size = dist.get_world_size()
        parts = [torch.empty_like(rows) for _ in range(world_size)]
        dist.all_gather(parts, rows.contiguous())
        ctx.share, ctx.world_size = len(rows), world_size
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        start = dist.get_rank() * ctx.share
        # All workers compute the same loss, so this worker's gradient of its own rows is complete.
        # The factor undoes the division by the number of workers when gradients are averaged.
        return gradients[0][start : start + ctx.share] * ctx.world_size


def gather_rows(rows: Tensor) -> Tensor:
    """The global batch of a tensor whose rows are spread over the workers, with gradients."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the workers, in one flat exchange.

    `DistributedDataParallel` would overlap the exchange with the backward pass, but it regroups its buckets
    after the first step of a process, so that a resumed run with three or more workers adds up in another
    order than an undisturbed one. Here the order is always that of the parameters.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


class GlobalBatchLoss(nn.Module):
    """STMI and its objective on the global batch.

    Args:
        model: The network.
        config: The objective's weights.
        autocast: Whether the network runs under bfloat16 autocast; losses are float32 always.
        compiled: Whether the network is compiled. Only here: evaluation comes in batches of other sizes, each
            of which would be compiled for itself.
    """

    def __init__(self, model: STMI, config: LossConfig, autocast: bool, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.autocast = autocast
        self.run_model = model.forward
        if compiled:
            self.run_model = torch.compile(model.forward, fullgraph=True, dynamic=False)

    def forward(self, batch: ModelInput, noise: ModelNoise, labels: Tensor) -> dict[str, Tensor]:
        """Loss and its parts of the global batch, of which `batch` and `labels` are this worker's rows.

        With a hypergraph, `incidence_density` is among the parts.
        """
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.run_model(batch, noise)
        trained = features.retrieval()
        gathered = {name: gather_rows(trained[name]) for name in self.model.heads}
        parts = losses.objective(self.config, gathered, self.model.logits(gathered), gather_rows(labels))
        if features.incidence_density is not None:
            parts["incidence_density"] = gather_rows(features.incidence_density).mean()
        return parts


class TrainStep:
    """The optimiser and the step.

    Args:
        model: The network, on its device.
        loss: The objective.
        optim: The optimiser and its rates.
        autocast: Run the network under bfloat16 autocast.
        compiled: Compile the network.
    """

    def __init__(
        self, model: STMI, loss: LossConfig, optim: OptimConfig, autocast: bool, compiled: bool = False
    ) -> None:
        self.config = optim
        self.module = GlobalBatchLoss(model, loss, autocast, compiled)
        self.optimizer = build_optimizer(model, optim)

    def __call__(
        self, batch: ModelInput, noise: ModelNoise, labels: Tensor, rate: float
    ) -> dict[str, Tensor]:
        """Take one step at a learning rate; returns the losses before it, detached scalars."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.module(batch, noise, labels)
        parts["total"].backward()
        average_gradients(self.module.parameters())
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return {name: value.detach() for name, value in parts.items()}


def build_optimizer(model: STMI, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW; alpha and beta of SFM in a group of their own."""
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


def learning_rate(config: OptimConfig, epoch: float, epochs: int) -> float:
    """The rate at a moment of the run.

    The cosine schedule warms up from zero along a line, then falls to the final rate. The released one
    changes by epoch, see `released_rates`.

    Args:
        config: Rates and warm-up.
        epoch: Epochs done, with the fraction of the current one.
        epochs: Epochs of the run.
    """
    if config.schedule == "released":
        rates = released_rates(config.learning_rate, config.final_learning_rate, epochs)
        return rates[min(int(epoch), epochs - 1)]
    if epoch < config.warmup_epochs:
        return config.learning_rate * epoch / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    falling = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * falling


@cache
def released_rates(rate: float, final_rate: float, epochs: int) -> tuple[float, ...]:
    """The released code's rate in each epoch.

    A cosine by epoch whose ten warm-up epochs start at ten times the rate and descend, with seeded noise:
    timm's scheduler with the arguments that code gives it.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=epochs,
        lr_min=final_rate,
        warmup_t=10,
        warmup_lr_init=10 * rate,
        cycle_limit=1,
        noise_range_t=(0, epochs),
        noise_pct=0.67,
        noise_std=1.0,
        noise_seed=42,
    )
    rates = []
    for epoch in range(1, epochs + 1):
        scheduler.step(epoch)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return tuple(rates)
