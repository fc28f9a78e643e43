"""Nearest neighbours of samples, and the sets of mutual ones that k-reciprocal re-ranking is made of.

N(p, k), R(p, k) and R*(p, k) are defined in `stmi.retrieval.reranking`.
"""

import numpy as np
from scipy import sparse

from stmi.retrieval.metrics import distance_chunks, normalise

BLOCK_ELEMENTS = 8 * 2**20
"""Distances held at a time in the search for neighbours; each needs about 16 bytes of working memory."""


def nearest_samples(samples: np.ndarray, k: int, chunk: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of every sample.

    Returns:
        N(p, k): p and then its nearest others, nearest first, ties by row, int64 `(samples, k)`; and the
        distance of the sample that is farthest from p, float32 `(samples,)`.
    """
    nearest = np.empty((len(samples), k), dtype=np.int64)
    nearest[:, 0] = np.arange(len(samples))
    farthest = np.empty(len(samples), dtype=np.float32)
    chunk = chunk or max(1, BLOCK_ELEMENTS // len(samples))
    columns = np.arange(len(samples), dtype=np.uint64)
    for rows, distances in distance_chunks(samples, samples, chunk):
        farthest[rows] = distances.max(axis=1)
        if k == 1:
            continue
        # The sample itself is already the first, even if another one also has distance 0.
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        # Floats without a sign have the order of their bits. With the row in the lower bits no two keys are
        # equal, so that a partition, which is cheaper than a sort, has one result.
        keys = np.ascontiguousarray(distances, dtype=np.float32).view(np.uint32).astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= columns
        keys.partition(k - 2, axis=1)
        near = np.sort(keys[:, : k - 1], axis=1)
        nearest[rows, 1:] = near & np.uint64(0xFFFFFFFF)
    return nearest, farthest


def reciprocal_sets(
    nearest: np.ndarray, half_size: int, more_than_two_thirds: bool = False
) -> sparse.coo_array:
    """R*(p, k) as entries of row p.

    Args:
        nearest: As `nearest_samples` gives it.
        half_size: Size of the smaller neighbourhoods N(q, k/2), with q itself.
        more_than_two_thirds: Of R(q, k/2) that R(p, k) must hold; else at least two thirds.
    """
    near = _reciprocal(nearest)
    half = _reciprocal(nearest[:, :half_size])
    # R is symmetric, so the product counts the common elements of R(p, k) and R(q, k/2) for all p and q.
    shared = near.multiply(near @ half).tocoo()
    sizes = half.sum(axis=1)[shared.col]
    joins = 3 * shared.data > 2 * sizes if more_than_two_thirds else 3 * shared.data >= 2 * sizes
    joined = sparse.csr_array(
        (np.ones(joins.sum(), dtype=np.float32), (shared.row[joins], shared.col[joins])), shape=near.shape
    )
    return (near + joined @ half).tocoo()


def pair_distances(samples: np.ndarray, pairs: sparse.coo_array) -> np.ndarray:
    """Distances between the two samples of each entry, defined as in `distance_chunks`."""
    unit = normalise(samples)
    distances = np.empty(pairs.nnz, dtype=np.float32)
    step = max(1, BLOCK_ELEMENTS // samples.shape[1])
    for start in range(0, pairs.nnz, step):
        part = slice(start, start + step)
        dots = np.einsum("pw,pw->p", unit[pairs.row[part]], unit[pairs.col[part]])
        distances[part] = np.sqrt(2 * np.maximum(1 - dots, 0))
    # A zero row is far from all samples but itself.
    distances[pairs.row == pairs.col] = 0
    return distances


def mean_over_neighbours(encoding: sparse.csr_array, neighbours: np.ndarray) -> sparse.csr_array:
    """V after the local query expansion: the mean over the k2 nearest."""
    expanded = _membership(neighbours) @ encoding
    expanded.data /= np.float32(neighbours.shape[1])
    return expanded


def _membership(neighbours: np.ndarray) -> sparse.csr_array:
    """1 where q is a neighbour of p, `(samples, samples)`, float32."""
    count, k = neighbours.shape
    ones = np.ones(count * k, dtype=np.float32)
    bounds = np.arange(0, count * k + 1, k)
    return sparse.csr_array((ones, neighbours.ravel(), bounds), shape=(count, count))


def _reciprocal(neighbours: np.ndarray) -> sparse.csr_array:
    """R(p, k) as ones in row p; symmetric."""
    member = _membership(neighbours)
    return member.multiply(member.T).tocsr()
