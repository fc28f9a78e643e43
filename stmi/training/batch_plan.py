"""The samples of each batch: identity-balanced batches as a function of seed and epoch."""

from collections.abc import Sequence

import numpy as np

from stmi import keyed_random
from stmi.config import BatchConfig


class BatchPlanError(ValueError):
    """The data set cannot fill batches of the configured size."""


def plan(labels: np.ndarray, config: BatchConfig, seed: int, epoch: int) -> np.ndarray:
    """The batches of an epoch: P identities x K samples each.

    The samples of every identity are shuffled and cut into groups of K. An identity with fewer samples
    repeats some; a remainder is left out in this epoch. A batch takes one group from each of P identities,
    sampled among those that have groups left. The epoch ends when fewer than P identities have groups left.

    Args:
        labels: Identity of each row, `(samples,)`.
        config: Batch size and K.
        seed: The run's seed.
        epoch: Epoch number.

    Returns:
        Row numbers, int64 `(steps, batch)`; the K rows of an identity are adjacent.

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
    """A worker's share of the batches of an epoch, if every worker has identities of its own.

    Each worker fills its P / world identities of every batch from its own rows, as `plan` fills a whole
    batch, so that no worker needs the pixels of another. The epoch ends for all workers when the first one
    has too few identities left. So the batches depend on the number of workers; those of a single worker are
    `plan`'s.

    Args:
        labels: For each worker, by rank, the identity of each of its rows, `(samples of that worker,)`. No
            two workers share an identity.
        rank: The worker.
        config: Size of the global batch and K.
        seed: The run's seed.
        epoch: Epoch number.

    Returns:
        Row numbers of that worker, int64 `(steps, batch / world)`; the K rows of an identity are adjacent.

    Raises:
        BatchPlanError: The identities of a batch are not a multiple of the workers, or one has too few.
    """
    group, world_size = config.samples_per_identity, len(labels)
    identities = config.size // group
    if identities % world_size:
        raise BatchPlanError(
            f"{world_size} workers do not divide the {identities} identities of batch.size={config.size} "
            f"with batch.samples_per_identity={group}, as workers with identities of their own must; "
            "use another number of them"
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
    # The first worker uses the random numbers of `plan`, so that a single worker has its batches.
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
    """Batches of `per_batch` identities x `group` rows, until too few identities have groups left."""
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
        positions = random.choice(len(left), per_batch, replace=False)
        chosen = left[positions]
        waiting[chosen] -= 1
        ends[chosen] -= 1
        batches.append(groups[ends[chosen]].ravel())
        left = np.delete(left, positions[waiting[chosen] == 0])
    return np.stack(batches).astype(np.int64)


def rows_of_rank(size: int, rank: int, world_size: int) -> slice:
    """A worker's part of a global batch of `size` rows.

    Raises:
        BatchPlanError: The batch size is not a multiple of the number of workers.
    """
    if size % world_size:
        raise BatchPlanError(f"{world_size} workers do not divide batch.size={size}; use a number that does")
    share = size // world_size
    return slice(rank * share, (rank + 1) * share)
