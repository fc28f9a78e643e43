"""The memory of a worker, in a dry run."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_catalog.records import Record
from experiments.planning.dry_run import DryRun
from stmi.training.batch_plan import rows_of_rank

OPTIMIZER_VALUES = 2
"""Adam keeps two running means for each trained value."""


class Memory(Record):
    """Bytes of one worker, without those of its process and the waste of its allocator."""

    weights: int
    """Parameters and buffers."""
    gradients: int
    """Gradients of the trained parameters."""
    optimizer: int
    """Running means of the optimiser."""
    batch: int
    """The worker's share of a batch, augmented."""
    activations: int
    """What a forward pass of a micro-batch keeps for the backward pass."""
    training_peak: int
    """Peak in a training step. It is not the sum of the above: activations are freed as gradients grow."""
    evaluation_peak: int
    """Peak while test samples are embedded."""
    peak: int
    """Peak of the whole run."""
    samples: int
    """The worker's samples of a batch."""


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


def measure_memory(run: DryRun) -> Memory:
    """Measure the memory of the worker of a dry run, whose tensors may be fake."""
    config, model = run.config, run.model
    with LiveBytes() as live:
        live.add([*model.parameters(), *model.buffers()])
        weights = live.now
        batch = run.batch()
        batch_bytes = live.now - weights
        rows = rows_of_rank(run.share, 0, config.train.micro_batches)
        features = run.take_step.module(*(part.rows(rows) for part in batch[:2]))
        activations = live.now - weights - batch_bytes
        del features
        run.take_step.backward(*batch)
        training = live.peak
        del batch
        live.peak = live.now
        run.embed(config.train.evaluation_batch)
        evaluation = live.peak
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    optimizer = OPTIMIZER_VALUES * sum(p.nbytes for p in trained)
    # Several workers keep the buckets in which they exchange gradients from one step to the next.
    training_peak = training + (gradients if config.train.workers > 1 else 0) + optimizer
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
