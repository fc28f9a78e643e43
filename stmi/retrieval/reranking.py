"""K-reciprocal re-ranking: a gallery sample is near if its neighbours are also neighbours of the query.

From Zhong et al. 2017, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR. With
d the distance of `stmi.retrieval.metrics` (Euclidean, of normalised embeddings), over all samples at once:

    N(p, k)     the k samples nearest to p; p itself is the first of them
    R(p, k)     = {q in N(p, k) : p in N(q, k)}
    R*(p, k)    = R(p, k) and every R(q, k/2), q in R(p, k), of which R(p, k) holds at least two thirds
    V[p, q]     = exp(-d(p, q)) where q in R*(p, k1), else 0
    V[p]        <- mean of V[q] over q in N(p, k2)
    d_J(p, g)   = 1 - sum_j min(V[p, j], V[g, j]) / sum_j max(V[p, j], V[g, j])
    d*(p, g)    = (1 - weight) d_J(p, g) + weight d(p, g)

The other queries are neighbours, too: the ranks of a query depend on which queries are evaluated together. So
re-ranked metrics must not be compared with plain ones.

Differs from the widely used code, which squares d and divides it by its maximum, scales every V[p] to sum 1,
requires more than two thirds, and keeps k1 samples beside p itself. Here k1 = 21 gives the neighbourhoods,
whole and half, that it has for k1 = 20 (k/2 is rounded up).
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from stmi.retrieval.metrics import RetrievalError, distance_chunks, normalise

BLOCK_ELEMENTS = 8 * 2**20
"""Distances held at a time in the search for neighbours; each needs about 16 bytes of working memory."""


def rerank(
    query: np.ndarray,
    gallery: np.ndarray,
    k1: int | None = None,
    k2: int | None = None,
    weight: float = 0.3,
    gallery_row: np.ndarray | None = None,
    chunk: int | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Distances d* of every query to the gallery, for `metrics.score`.

    The neighbours are searched at once, the distances are computed as the iterator advances.

    Args:
        query: float32 `(queries, width)`, not normalised.
        gallery: float32 `(gallery, width)`, not normalised.
        k1: Number of neighbours, with the sample itself, that can be k-reciprocal; None for 20, or all
            samples where they are fewer.
        k2: Number of neighbours, with the sample itself, of the local query expansion; 1 for none; None for
            6, or k1 where it is smaller.
        weight: Lambda, the share of the plain distance, 0 to 1; with 1 the ranking is the plain one.
        gallery_row: Integer `(queries,)`: the row of the gallery that is the same sample, -1 for none.
            Without it, a query that is also in the gallery counts as two samples, which are neighbours of
            each other.
        chunk: Samples at a time; None for as many as fit in the working memory.

    Returns:
        Chunks: the rows of queries, and their distances, float32 `(rows, gallery)`.

    Raises:
        RetrievalError: A setting is out of range, or an embedding is not finite.
    """
    samples, row = _joined(query, gallery, gallery_row)
    k1 = min(20, len(samples)) if k1 is None else k1
    k2 = min(6, k1) if k2 is None else k2
    _check(samples, k1, k2, weight)
    nearest = _nearest(samples, k1, chunk)
    encoding = _expanded(_encoding(samples, nearest), nearest[:, :k2])
    return _distances(query, gallery, encoding, row, weight, chunk)


def _joined(
    query: np.ndarray, gallery: np.ndarray, gallery_row: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Each sample once, the gallery first, and the row of every query in that array."""
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise RetrievalError(
            f"query embeddings are {query.shape} and gallery embeddings {gallery.shape}; expected "
            "(samples, width) with one width"
        )
    if gallery_row is None:
        gallery_row = np.full(len(query), -1)
    if gallery_row.shape != (len(query),) or not np.issubdtype(gallery_row.dtype, np.integer):
        raise RetrievalError(
            f"gallery_row is {gallery_row.dtype} {gallery_row.shape}; expected integers ({len(query)},), "
            "one for each query"
        )
    if ((gallery_row < -1) | (gallery_row >= len(gallery))).any():
        raise RetrievalError(
            f"gallery_row has values from {gallery_row.min()} to {gallery_row.max()}; expected -1 to "
            f"{len(gallery) - 1}, the rows of the gallery"
        )
    alone = gallery_row < 0
    row = np.where(alone, len(gallery) + np.cumsum(alone) - 1, gallery_row)
    return np.concatenate([gallery, query[alone]]).astype(np.float32, copy=False), row


def _check(samples: np.ndarray, k1: int, k2: int, weight: float) -> None:
    if not 1 <= k1 <= len(samples):
        raise RetrievalError(f"k1={k1}: expected 1 to {len(samples)}, the number of samples")
    if not 1 <= k2 <= k1:
        raise RetrievalError(f"k2={k2}: expected 1 to k1={k1}")
    if not 0 <= weight <= 1:
        raise RetrievalError(f"weight={weight}: expected 0 to 1, the share of the plain distance")
    if not np.isfinite(samples).all():
        raise RetrievalError("embeddings are not finite; re-ranking needs finite ones")


def _nearest(samples: np.ndarray, k: int, chunk: int | None) -> np.ndarray:
    """N(p, k): p and then its nearest others, nearest first, ties by row; int64 `(samples, k)`."""
    nearest = np.empty((len(samples), k), dtype=np.int64)
    nearest[:, 0] = np.arange(len(samples))
    if k == 1:
        return nearest
    chunk = chunk or max(1, BLOCK_ELEMENTS // len(samples))
    columns = np.arange(len(samples), dtype=np.uint64)
    for rows, distances in distance_chunks(samples, samples, chunk):
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
    return nearest


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


def _encoding(samples: np.ndarray, nearest: np.ndarray) -> sparse.csr_array:
    """V: exp(-d) on R*(p, k1)."""
    near = _reciprocal(nearest)
    half = _reciprocal(nearest[:, : (nearest.shape[1] + 1) // 2])
    # R is symmetric, so the product counts the common elements of R(p, k) and R(q, k/2) for all p and q.
    shared = near.multiply(near @ half).tocoo()
    sizes = half.sum(axis=1)
    joins = 3 * shared.data >= 2 * sizes[shared.col]
    joined = sparse.csr_array(
        (np.ones(joins.sum(), dtype=np.float32), (shared.row[joins], shared.col[joins])), shape=near.shape
    )
    star = (near + joined @ half).tocoo()
    distances = _pair_distances(samples, star.row, star.col)
    return sparse.csr_array((np.exp(-distances), (star.row, star.col)), shape=near.shape)


def _pair_distances(samples: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances between the rows `first` and `second`, pair by pair, defined as in `distance_chunks`."""
    unit = normalise(samples)
    distances = np.empty(len(first), dtype=np.float32)
    step = max(1, BLOCK_ELEMENTS // samples.shape[1])
    for start in range(0, len(first), step):
        pairs = slice(start, start + step)
        dots = np.einsum("pw,pw->p", unit[first[pairs]], unit[second[pairs]])
        distances[pairs] = np.sqrt(2 * np.maximum(1 - dots, 0))
    # A zero row is far from all samples but itself.
    distances[first == second] = 0
    return distances


def _expanded(encoding: sparse.csr_array, neighbours: np.ndarray) -> sparse.csr_array:
    """V after the local query expansion: the mean over the k2 nearest."""
    expanded = _membership(neighbours) @ encoding
    expanded.data /= np.float32(neighbours.shape[1])
    return expanded


def _distances(
    query: np.ndarray,
    gallery: np.ndarray,
    encoding: sparse.csr_array,
    row: np.ndarray,
    weight: float,
    chunk: int | None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """The distances d*, a few queries at a time."""
    chunk = chunk or max(1, BLOCK_ELEMENTS // max(1, len(gallery)))
    holders = encoding[: len(gallery)].T.tocsr()
    sums = encoding.sum(axis=1)
    for rows, distances in distance_chunks(query, gallery, chunk):
        np.multiply(distances, np.float32(weight), out=distances)
        for own, mixed in zip(row[rows], distances, strict=True):
            smaller = _sum_of_minima(encoding, own, holders)
            # The larger of two numbers is their sum minus the smaller.
            larger = sums[own] + sums[: len(gallery)] - smaller
            np.add(mixed, (1 - weight) * (1 - smaller / larger), out=mixed, casting="same_kind")
        yield rows, distances


def _sum_of_minima(encoding: sparse.csr_array, own: int, holders: sparse.csr_array) -> np.ndarray:
    """The sum over j of min(V[p, j], V[g, j]) for one p and every g, from the entries that are not 0.

    Args:
        encoding: V, `(samples, samples)`.
        own: The row p.
        holders: V of the gallery, transposed: row j has the gallery samples with an entry j.
    """
    entries = slice(encoding.indptr[own], encoding.indptr[own + 1])
    part = holders[encoding.indices[entries]]
    values = np.repeat(encoding.data[entries], np.diff(part.indptr))
    return np.bincount(part.indices, np.minimum(values, part.data), minlength=holders.shape[1])
