"""Which identities are in which shard of a view, and which worker reads which shards.

A shard of a view holds whole identities, and the manifest says which. So a worker can read some shards of a
data set that is too large for one node, and knows what the other workers have without opening their shards.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_catalog.errors import CatalogError
from data_catalog.tables.table import Table


def cut_by_identity(identity: npt.NDArray[np.int64], samples_per_shard: int) -> list[npt.NDArray[np.int64]]:
    """The identities of each shard, in rising order, so that none is in two shards.

    Args:
        identity: Identity of every sample, in any order.
        samples_per_shard: Largest number of samples of a shard; a single larger identity has its own shard.
    """
    identities, samples = np.unique(identity, return_counts=True)
    starts, filled = [0], 0
    for position, count in enumerate(samples):
        if filled and filled + count > samples_per_shard:
            starts.append(position)
            filled = 0
        filled += int(count)
    return np.split(identities, starts[1:])


def count_identities(identity: npt.NDArray[np.int64]) -> list[list[int]]:
    """Each identity of a shard with its number of samples, in rising order; for its manifest."""
    identities, samples = np.unique(identity, return_counts=True)
    return [[int(identity), int(count)] for identity, count in zip(identities, samples, strict=True)]


def identities_by_shard(view: Table) -> list[npt.NDArray[np.int64]]:
    """Identity of each row of each shard of a view, from its manifest; opens no shard.

    Raises:
        CatalogError: If the view is of a version whose shards were not cut by identity.
    """
    shards: list[list[list[int]]] | None = view.statistics.get("identities")
    if shards is None:
        raise CatalogError(
            f"view {view.path} does not say which identities its shards hold; make it again with "
            "`python -m data_catalog view`"
        )
    return [np.repeat(*np.array(shard, dtype=np.int64).reshape(-1, 2).T) for shard in shards]


def assign_shards(samples: Sequence[int], workers: int) -> list[list[int]]:
    """Distribute shards so that all workers have about as many samples.

    The largest remaining shard goes to the worker with the fewest samples (Graham 1969, "Bounds on
    multiprocessing timing anomalies"); of equals, the earlier shard to the earlier worker.

    Args:
        samples: Samples in each shard.
        workers: Number of workers.

    Returns:
        The shards of each worker, by rank, in rising order.

    Raises:
        CatalogError: If there are fewer shards than workers.
    """
    if len(samples) < workers:
        raise CatalogError(
            f"{workers} workers cannot share {len(samples)} shards of whole identities; use at most "
            f"{len(samples)} workers, or make the view with smaller shards (--samples-per-shard)"
        )
    assigned: list[list[int]] = [[] for _ in range(workers)]
    filled = [0] * workers
    for shard in sorted(range(len(samples)), key=lambda shard: (-samples[shard], shard)):
        worker = min(range(workers), key=lambda worker: (filled[worker], worker))
        assigned[worker].append(shard)
        filled[worker] += samples[shard]
    return [sorted(shards) for shards in assigned]
