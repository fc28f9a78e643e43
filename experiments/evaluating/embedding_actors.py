"""Embeddings of a view by Ray Data over all nodes of a cluster: each row once, on any number of actors.

The view is split into the batches of a single process, and a call of an actor embeds one whole batch, so the
embeddings depend neither on the number of actors nor on the assignment of batches. The model is sent through
Ray's object store, once per node, without a shared folder. The view is read from its catalog. The batch of a
lost actor goes to a new one.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch

from data_catalog.actors import map_on_actors
from data_catalog.progress import progress_bar
from data_catalog.ray_failures import describe_failure
from data_catalog.ray_session import ensure_ray
from data_catalog.storage.node_probe import NeededFolder, check_nodes
from data_catalog.views.view_reader import View, open_view
from experiments.evaluating.evaluation_target import EvaluationTarget
from experiments.run.evaluation import embed_rows, retrieval_features
from experiments.run.run_result import FailedRunError, RunError
from experiments.run.workers.ray_train import prepare_ray
from stmi.modality import Modality

CPUS_PER_ACTOR = 4
"""Without GPUs: each actor has a copy of the model, and too many threads on one batch wait for each other."""


def embed_on_cluster(
    target: EvaluationTarget, missing: Sequence[tuple[Modality, ...]], actors: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Every retrieval feature of every row of a view, for one set of missing modalities after another.

    Args:
        target: Model, on the CPU, and view.
        missing: Sets of modalities whose images are replaced by zeros.
        actors: Number of actors; None for as many as the cluster can run.

    Yields:
        For each set, float32 `(rows, width)` by feature name, in the order of the view.

    Raises:
        RunError: The cluster has fewer GPUs than `actors`.
        FailedRunError: An actor failed.
    """
    prepare_ray()
    ensure_ray()
    check_nodes([NeededFolder("catalog", target.table.catalog, is_written=False)])
    size, share = share_cluster([node["Resources"] for node in ray.nodes() if node["Alive"]], actors)
    count = len(target.table)
    total = count * len(missing)
    features: dict[str, np.ndarray] = {}
    try:
        with progress_bar("embedding", "sample") as report:
            report(0, total)
            for first, block in in_order(_blocks(target, missing, size, share), total):
                row, rows = first % count, len(block["U"])
                if row == 0:
                    features = {n: np.empty((count, v.shape[1]), v.dtype) for n, v in block.items()}
                for name, values in block.items():
                    # Copied at once: a reference would keep the block in the object store.
                    features[name][row : row + rows] = values
                report(first + rows, total)
                if row + rows == count:
                    yield retrieval_features({n: torch.from_numpy(v) for n, v in features.items()})
    except ray.exceptions.RayError as error:
        reason = describe_failure(error, "lower train.evaluation_batch, or use nodes with more memory")
        raise FailedRunError(f"{target.name} could not be embedded: {reason}") from error


def _blocks(
    target: EvaluationTarget, missing: Sequence[tuple[Modality, ...]], size: int, share: dict[str, Any]
) -> Iterable[dict[str, np.ndarray]]:
    """The results of `_Embedder` by batch, for the whole view and each set of missing modalities."""
    count, batch = len(target.table), target.config.train.evaluation_batch
    batches = [
        {"setting": setting, "first": first, "last": min(first + batch, count)}
        for setting in range(len(missing))
        for first in range(0, count, batch)
    ]
    return map_on_actors(
        batches, _Embedder, (ray.put(target), missing), min(size, len(batches)), share, in_order=True
    )


class _Embedder:
    """The Ray Data actor: embeds one batch a call.

    Args:
        target: Reference to the `EvaluationTarget` in the object store.
        missing: Sets of missing modalities.
    """

    def __init__(self, target: ray.ObjectRef, missing: Sequence[tuple[Modality, ...]]) -> None:
        self.reference = target
        self.missing = missing

    # Loaded by the first call, not the constructor: the error of a call reaches the user as it is.
    @cached_property
    def target(self) -> EvaluationTarget:
        """The target, its model on this actor's device."""
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(cpus)))
        target = ray.get(self.reference)
        target.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return target

    @cached_property
    def view(self) -> View:
        """The target's view."""
        return open_view(self.target.table)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        setting, first, last = (int(batch[name][0]) for name in ("setting", "first", "last"))
        rows = np.arange(first, last)
        target = self.target
        features = embed_rows(
            target.model, self.view, rows, target.autocast, target.captions, self.missing[setting]
        )
        position = setting * len(self.view) + rows
        return {"position": position} | {name: values.cpu().numpy() for name, values in features.items()}


def in_order(
    blocks: Iterable[Mapping[str, np.ndarray]], count: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Check the order of blocks of rows; gives each one with the position of its first row.

    Args:
        blocks: Columns by name; `position` numbers the rows from 0 over all blocks.
        count: Expected number of rows.

    Raises:
        FailedRunError: A row is missing, repeated or out of order.
    """
    done = 0
    for block in blocks:
        columns = dict(block)
        positions = columns.pop("position")
        if not np.array_equal(positions, np.arange(done, done + len(positions))):
            raise FailedRunError(
                f"Ray Data gave rows {positions.min()} to {positions.max()} where row {done} was next"
            )
        yield done, columns
        done += len(positions)
    if done != count:
        raise FailedRunError(f"Ray Data gave {done} rows, expected {count}")


def share_cluster(machines: Sequence[Mapping[str, float]], actors: int | None) -> tuple[int, dict[str, Any]]:
    """The number of actors for a cluster, and the resources of each.

    Args:
        machines: CPUs and GPUs of every machine, by Ray's names.
        actors: Number of actors; None for one per GPU, or without GPUs one for every few CPUs.

    Raises:
        RunError: The cluster has GPUs, but fewer than actors.
    """
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus:
        if actors is not None and actors > gpus:
            raise RunError(
                f"--workers={actors}, but the cluster has {gpus} GPUs; ask for at most as many, or hide the "
                "GPUs (CUDA_VISIBLE_DEVICES=) to evaluate on CPUs"
            )
        return actors or gpus, {"num_gpus": 1}
    cpus = [machine["CPU"] for machine in machines if machine.get("CPU", 0) > 0]
    if actors is None:
        each = min(CPUS_PER_ACTOR, max(cpus))
        return sum(int(own / each) for own in cpus), {"num_cpus": each}
    # The largest share that fits on the machines often enough; Ray counts in units of 1e-4.
    shares = {math.floor(1e4 * own / parts) / 1e4 for own in cpus for parts in range(1, actors + 1)}
    fitting = (share for share in shares if sum(int(own / share) for own in cpus) >= actors)
    return actors, {"num_cpus": max(fitting)}
