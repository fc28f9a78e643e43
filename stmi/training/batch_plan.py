"""The samples of each batch: identity-balanced batches as a function of seed and epoch."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat

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
    random = keyed_random.generator(seed, "batch_plan", epoch)
    return np.stack(_draw(labels, repeat(per_batch), group, random))


def plan_together(
    labels: Mapping[str, np.ndarray], shares: Sequence[float], config: BatchConfig, seed: int, epoch: int
) -> np.ndarray:
    """The batches of an epoch on several data sets, each of which has its share of the identities.

    The identities of each data set are drawn as `plan` draws them. A share need not be a whole number of the
    P identities of a batch: in all batches together each data set has its share, within one identity or so.
    The epoch ends when the first data set has too few identities left; what is left of the others is left out
    in this epoch.

    Args:
        labels: By data set, the identity of each of its rows; two data sets share no identity, whatever their
            numbers.
        shares: Shares of each data set, above zero; they add up to 1. Empty for the numbers of identities.
        config: Batch size and K.
        seed: The run's seed.
        epoch: Epoch number.

    Returns:
        Row numbers, int64 `(steps, batch)`, counted over the rows of all data sets, one data set after the
        other; of one data set the plan is that of `plan`.

    Raises:
        BatchPlanError: A data set has fewer identities than a batch needs of it.
    """
    if len(labels) == 1:
        return plan(next(iter(labels.values())), config, seed, epoch)
    group = config.samples_per_identity
    counted = [np.unique(own, return_counts=True)[1] for own in labels.values()]
    groups = sum(int(np.maximum(samples // group, 1).sum()) for samples in counted)
    steps, per_batch = max(1, groups * group // config.size), config.size // group
    shares = shares or [len(samples) for samples in counted]
    owners = _owners(shares, steps * per_batch).reshape(steps, per_batch)
    needed = [(owners == number).sum(axis=1) for number in range(len(labels))]
    for name, samples, own in zip(labels, counted, needed, strict=True):
        if len(samples) < own.max():
            raise BatchPlanError(
                f"data set {name!r} has {len(samples)} training identities, and its share of batch.size="
                f"{config.size} with batch.samples_per_identity={group} needs {own.max()}; use a smaller "
                "share (data.shares) or a smaller batch"
            )
    parts, first = [], 0
    for number, (own, needs) in enumerate(zip(labels.values(), needed, strict=True)):
        random = keyed_random.generator(seed, "batch_plan", epoch, "data set", number)
        parts.append([first + rows for rows in _draw(own, needs.tolist(), group, random)])
        first += len(own)
    return np.stack([np.concatenate(step) for step in zip(*parts, strict=False)])


def _owners(shares: Sequence[float], slots: int) -> np.ndarray:
    """Which data set has each slot of the batches, one slot after the other, int64 `(slots,)`.

    The j-th slot of a data set comes at (j - 1/2) / share (Webster 1832, Sainte-Lague 1910); of equals, the
    earlier data set is first.
    """
    comes_at = [(np.arange(slots) + 0.5) / share for share in shares]
    order = np.argsort(np.concatenate(comes_at), kind="stable")[:slots]
    return np.repeat(np.arange(len(shares)), slots)[order]


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
            repeat(share),
            group,
            keyed_random.generator(seed, "batch_plan", epoch, *([worker] if worker else [])),
        )
        for worker, own in enumerate(labels)
    ]
    return np.stack(plans[rank][: min(map(len, plans))])


def _draw(
    labels: np.ndarray, counts: Iterable[int], group: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Batches of identities x `group` rows, int64, until too few identities have groups left.

    Args:
        labels: Identity of each row.
        counts: How many identities each batch has.
        group: K.
        random: Generator of the random numbers.
    """
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
    batches: list[np.ndarray] = []
    for count in counts:
        if len(left) < count:
            break
        positions = random.choice(len(left), count, replace=False)
        chosen = left[positions]
        waiting[chosen] -= 1
        ends[chosen] -= 1
        batches.append(groups[ends[chosen]].ravel().astype(np.int64))
        left = np.delete(left, positions[waiting[chosen] == 0])
    return batches


def rows_of_rank(size: int, rank: int, world_size: int) -> slice:
    """A worker's part of a global batch of `size` rows.

    Raises:
        BatchPlanError: The batch size is not a multiple of the number of workers.
    """
    if size % world_size:
        raise BatchPlanError(f"{world_size} workers do not divide batch.size={size}; use a number that does")
    share = size // world_size
    return slice(rank * share, (rank + 1) * share)
