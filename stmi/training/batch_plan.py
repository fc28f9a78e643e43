"""Which samples make up which batch: identity-balanced batches as a function of (seed, epoch)."""

from collections.abc import Sequence

import numpy as np

from stmi import keyed_random
from stmi.config import BatchConfig


class BatchPlanError(ValueError):
    """The data set cannot fill the batches that were asked for."""


def plan(labels: np.ndarray, config: BatchConfig, seed: int, epoch: int) -> np.ndarray:
    """The batches of an epoch: P identities x K samples each.

    Every identity's samples are shuffled and cut into groups of K (an identity with fewer repeats
    some; a remainder waits for another epoch's shuffle). A batch takes a group each from P identities
    drawn among those that have one left; the epoch ends when fewer than P have.

    Args:
        labels: Identity of each row, `(samples,)`.
        config: Batch size and K.
        seed: The run's seed.
        epoch: Epoch number.

    Returns:
        Row numbers, int64 `(steps, batch)`, an identity's K rows side by side.

    Raises:
        BatchPlanError: There are fewer identities than a batch holds.
    """
    group = config.samples_per_identity
    per_batch = config.size // group
    found = len(np.unique(labels))
    if found < per_batch:
        raise BatchPlanError(
            f"batch.size={config.size} with batch.samples_per_identity={group} needs {per_batch} identities; "
            f"the training data has {found}; use a batch of at most {found * group}"
        )
    return _draw(labels, per_batch, group, keyed_random.generator(seed, "batch_plan", epoch))


def plan_share(
    labels: Sequence[np.ndarray], rank: int, config: BatchConfig, seed: int, epoch: int
) -> np.ndarray:
    """A worker's share of the batches of an epoch, where every worker has identities of its own.

    Each worker fills its P / world identities of every batch from its own rows, as `plan` fills a whole
    batch, so none needs another's pixels. An epoch ends for all when the first worker has too few
    identities left. So the batches depend on how many workers there are; those of one worker are `plan`'s.

    Args:
        labels: Of every worker, by rank, the identity of each of its rows, `(samples of that worker,)`.
            No identity is with two workers.
        rank: The worker whose share it is.
        config: Size of the global batch and K.
        seed: The run's seed.
        epoch: Epoch number.

    Returns:
        Numbers of that worker's rows, int64 `(steps, batch / world)`, an identity's K rows side by side.

    Raises:
        BatchPlanError: The workers do not divide the identities of a batch, or one has too few.
    """
    group, world_size = config.samples_per_identity, len(labels)
    identities = config.size // group
    if identities % world_size:
        raise BatchPlanError(
            f"{world_size} workers do not divide the {identities} identities of batch.size={config.size} "
            f"with batch.samples_per_identity={group}, as workers with identities of their own must"
        )
    share = identities // world_size
    for worker, own in enumerate(labels):
        found = len(np.unique(own))
        if found < share:
            raise BatchPlanError(
                f"worker {worker} of {world_size} has {found} identities of its own, and its share of "
                f"batch.size={config.size} with batch.samples_per_identity={group} needs {share}; use a "
                "smaller batch or fewer workers"
            )
    # The first worker draws as `plan` does, so that one worker alone has the batches of `plan`.
    plans = [
        _draw(
            own,
            share,
            group,
            keyed_random.generator(seed, "batch_plan", epoch, *([worker] if worker else [])),
        )
        for worker, own in enumerate(labels)
    ]
    return plans[rank][: min(map(len, plans))]


def _draw(labels: np.ndarray, per_batch: int, group: int, random: np.random.Generator) -> np.ndarray:
    """Batches of `per_batch` identities x `group` rows until too few identities have rows left."""
    _, samples = np.unique(labels, return_counts=True)
    parts = []
    for own in np.split(np.argsort(labels, kind="stable"), np.cumsum(samples)[:-1]):
        rows = random.permutation(own)
        if len(rows) < group:
            rows = np.concatenate([rows, random.choice(rows, group - len(rows))])
        parts.append(rows[: len(rows) // group * group].reshape(-1, group))
    groups = np.concatenate(parts)
    waiting = np.array([len(part) for part in parts])
    ends = np.cumsum(waiting)
    left = np.arange(len(parts))
    batches = []
    while len(left) >= per_batch:
        places = random.choice(len(left), per_batch, replace=False)
        chosen = left[places]
        waiting[chosen] -= 1
        ends[chosen] -= 1
        batches.append(groups[ends[chosen]].ravel())
        left = np.delete(left, places[waiting[chosen] == 0])
    return np.stack(batches).astype(np.int64)


def rows_of_rank(size: int, rank: int, world_size: int) -> slice:
    """The part of a global batch of `size` rows that a worker takes.

    Raises:
        BatchPlanError: The workers do not divide the batch.
    """
    if size % world_size:
        raise BatchPlanError(f"{world_size} workers do not divide batch.size={size}")
    share = size // world_size
    return slice(rank * share, (rank + 1) * share)
