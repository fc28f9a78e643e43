"""One optimisation step on a global batch, on any number of workers.

Every worker embeds its rows, the features are gathered, and every worker computes the same loss on the whole
batch, with ordinary batch norms. So the loss, and with it the trained model, does not depend on the number of
workers. All workers start from the same weights, which depend on the seed.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stmi.config import LossConfig, OptimConfig
from stmi.feature_modulation import ModulationStrength
from stmi.incidence import FACTS
from stmi.model import STMI
from stmi.model_input import ModelInput, RandomDraws
from stmi.training import losses
from stmi.training.batch_plan import rows_of_rank

HYPEREDGE_PREFIX = "hyperedges/"
"""At the start of the name of what is no loss, but the mean of a fact about hyperedges."""
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

    Attributes:
        own_seconds: Time that this worker took to embed its rows, before it waits for the others. On a GPU it
            is that of starting to.
    """

    def __init__(self, model: STMI, config: LossConfig, autocast: bool, compiled: bool = False) -> None:
        super().__init__()
        # Buckets are filled from the last parameter to the first, and exchanged in that order. The gradient
        # of alpha and beta is complete only after the first layer's, and would hold up all others.
        self.modulation = model.image_tower.modulation
        self.model = model
        self.config = config
        self.autocast = autocast
        self.own_seconds = 0.0
        self.run_model = model.forward
        if compiled:
            self.run_model = torch.compile(model.forward, fullgraph=True, dynamic=False)

    def forward(
        self, batch: ModelInput, draws: RandomDraws, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss of the global batch and its parts; arguments are this worker's rows.

        With a hypergraph there are also the means of `stmi.incidence.FACTS`, as `hyperedges/NAME`, and, where
        its tau follows the batches, `similarities` of the global batch. Without labels, what `loss` needs of
        these rows.
        """
        began = time.perf_counter()
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.run_model(batch, draws)
        self.own_seconds += time.perf_counter() - began
        trained = features.retrieval()
        rows = {name: trained[name] for name in self.model.heads}
        if features.hypergraph is not None:
            rows["hyperedges"] = features.hypergraph.facts.stacked()
            if features.hypergraph.similarities is not None:
                rows["similarities"] = features.hypergraph.similarities
        return rows if labels is None else self.loss(rows, labels)

    def loss(self, rows: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """The loss of the global batch and its parts, from the features of this worker's rows."""
        features = {name: gather_rows(values) for name, values in rows.items()}
        hyperedges = features.pop("hyperedges", None)
        similarities = features.pop("similarities", None)
        parts = losses.objective(self.config, features, self.model.logits(features), gather_rows(labels))
        if hyperedges is not None:
            means = zip(FACTS, hyperedges.mean(dim=0), strict=True)
            parts |= {f"{HYPEREDGE_PREFIX}{name}": value for name, value in means}
        return parts if similarities is None else parts | {"similarities": similarities}


class TrainStep:
    """The optimiser and one step of it.

    Args:
        model: The network, on its device.
        loss: Weights of the objective.
        optim: The optimiser and its rates.
        autocast: Run the network under bfloat16 autocast.
        compiled: Compile the network.
        micro_batches: Parts in which the network embeds a worker's rows, so that it keeps the activations of
            one part only; the gradients are those of the whole.
        checkpoint_activations: As `STMI.checkpoint_activations`.
        skips_not_finite: Whether a batch whose loss or gradient is not finite leaves the model as it is. Both
            are those of the global batch, so all workers do the same.
    """

    def __init__(
        self,
        model: STMI,
        loss: LossConfig,
        optim: OptimConfig,
        autocast: bool,
        compiled: bool = False,
        micro_batches: int = 1,
        checkpoint_activations: bool = False,
        skips_not_finite: bool = False,
    ) -> None:
        if checkpoint_activations:
            model.checkpoint_activations()
        self.config = optim
        self.model = model
        self.micro_batches = micro_batches
        self.skips_not_finite = skips_not_finite
        self.global_loss = GlobalBatchLoss(model, loss, autocast, compiled)
        self.module = distribute(self.global_loss)
        self.optimizer = build_optimizer(model, optim)

    def __call__(
        self, batch: ModelInput, draws: RandomDraws, labels: Tensor, rate: float
    ) -> dict[str, Tensor]:
        """Take one step at a learning rate.

        Returns:
            The losses before the step, as detached scalars; `total` is NaN where a gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        # The batch norms count a batch before its loss is known.
        buffers = [buffer.clone() for buffer in self.model.buffers()] if self.skips_not_finite else []
        parts = self.backward(batch, draws, labels)
        similarities = parts.pop("similarities", None)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.gradient_clip:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.gradient_clip, norm)
        taken = {name: value.detach() for name, value in parts.items()}
        taken["total"] = taken["total"].where(norm.isfinite(), torch.nan)
        if not self.skips_not_finite or math.isfinite(taken["total"]):
            self.optimizer.step()
            # Last, since micro-batches are embedded twice, with the same tau.
            if similarities is not None and self.model.incidence is not None:
                self.model.incidence.follow(similarities)
        else:
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return taken

    def backward(self, batch: ModelInput, draws: RandomDraws, labels: Tensor) -> dict[str, Tensor]:
        """Compute the losses and the gradients; arguments are this worker's rows."""
        if self.micro_batches > 1:
            return self._backward_in_parts(batch, draws, labels)
        parts = self.module(batch, draws, labels)
        parts["total"].backward()
        return parts

    def _backward_in_parts(self, batch: ModelInput, draws: RandomDraws, labels: Tensor) -> dict[str, Tensor]:
        """The same in parts, as GradCache (Gao et al. 2021, "Scaling deep contrastive learning batch size").

        The micro-batches are embedded without activations, the loss of all features gives the gradient of
        each feature, and each micro-batch is embedded again to send its gradients back.
        """
        parts_of_rows = [rows_of_rank(len(labels), i, self.micro_batches) for i in range(self.micro_batches)]
        micro_batches = [(batch.rows(rows), draws.rows(rows)) for rows in parts_of_rows]
        with torch.no_grad():
            embedded = [self.global_loss(*micro_batch) for micro_batch in micro_batches]
        features = {
            name: torch.cat([part[name] for part in embedded]).requires_grad_() for name in embedded[0]
        }
        with self._without_exchange():
            losses = self.global_loss.loss(features, labels)
            losses["total"].backward()
        for rows, micro_batch in zip(parts_of_rows, micro_batches, strict=True):
            is_last = rows.stop == len(labels)
            with nullcontext() if is_last else self._without_exchange():
                again = self.module(*micro_batch)
                trained = {
                    name: values.grad[rows]
                    for name, values in features.items()
                    if values.grad is not None and again[name].requires_grad
                }
                torch.autograd.backward([again[name] for name in trained], list(trained.values()))
        return losses

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Gradients add up on each worker until a backward pass outside of this."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) else nullcontext()


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
