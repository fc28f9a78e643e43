"""Which samples make up which batch: identity-balanced batches as a function of (seed, epoch)."""

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
    identities, inverse = np.unique(labels, return_inverse=True)
    if len(identities) < per_batch:
        raise BatchPlanError(
            f"batch.size={config.size} with batch.samples_per_identity={group} needs {per_batch} identities; "
            f"the training data has {len(identities)}; use a batch of at most {len(identities) * group}"
        )
    random = keyed_random.generator(seed, "batch_plan", epoch)
    groups: list[list[np.ndarray]] = []
    for number in range(len(identities)):
        rows = random.permutation(np.flatnonzero(inverse == number))
        if len(rows) < group:
            rows = np.concatenate([rows, random.choice(rows, group - len(rows))])
        groups.append(list(rows[: len(rows) // group * group].reshape(-1, group)))
    batches = []
    left = [number for number, waiting in enumerate(groups) if waiting]
    while len(left) >= per_batch:
        chosen = random.choice(left, per_batch, replace=False)
        batches.append(np.concatenate([groups[number].pop() for number in chosen]))
        left = [number for number in left if groups[number]]
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
