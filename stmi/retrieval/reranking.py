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

That is the variant "paper". The variant "field" is the code with which nearly all published re-ranked
numbers were computed. It differs:

- d is squared and divided by the largest one from p to any sample.
- R has k1 samples beside p itself, and k1/2, rounded to the even number, beside q itself.
- R(p, k) must hold more than two thirds.
- Each V[p] is scaled to the sum 1 before the mean. V, sums of minima, and d_J have half precision.
- A query that is also in the gallery counts as two samples.

The other queries are neighbours, too: the ranks of a query depend on which queries are evaluated together. So
re-ranked metrics must not be compared with plain ones, nor those of one variant with those of the other.
"""

from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
from scipy import sparse

from stmi.retrieval.metrics import RerankVariant, RetrievalError, distance_chunks
from stmi.retrieval.neighbours import (
    BLOCK_ELEMENTS,
    mean_over_neighbours,
    nearest_samples,
    pair_distances,
    reciprocal_sets,
)


def rerank(
    query: np.ndarray,
    gallery: np.ndarray,
    k1: int | None = None,
    k2: int | None = None,
    weight: float = 0.3,
    gallery_row: np.ndarray | None = None,
    chunk: int | None = None,
    variant: RerankVariant = "field",
) -> Iterator[tuple[slice, np.ndarray]]:
    """Distances d* of every query to the gallery, for `metrics.score`.

    The neighbours are searched at once, the distances are computed as the iterator advances.

    Args:
        query: float32 `(queries, width)`, not normalised.
        gallery: float32 `(gallery, width)`, not normalised.
        k1: Number of neighbours that can be k-reciprocal, for "paper" with the sample itself; None for 20, or
            all samples where they are fewer.
        k2: Number of neighbours, with the sample itself, of the local query expansion; 1 for none; None for
            6, or k1 where it is smaller.
        weight: Lambda, the share of the plain distance, 0 to 1; with 1 the ranking is the plain one.
        gallery_row: For "paper", integer `(queries,)`: the row of the gallery that is the same sample, -1 for
            none. Without it, a query that is also in the gallery counts as two samples, which are neighbours
            of each other.
        chunk: Samples at a time; None for as many as fit in the working memory.
        variant: Which re-ranking.

    Returns:
        Chunks: the rows of queries, and their distances, float32 `(rows, gallery)`.

    Raises:
        RetrievalError: A setting is out of range, or an embedding is not finite.
    """
    if variant not in get_args(RerankVariant):
        known = ", ".join(get_args(RerankVariant))
        raise RetrievalError(f"re-ranking {variant!r} is unknown; expected one of {known}")
    samples, row = _joined(query, gallery, gallery_row)
    if variant == "paper":
        k1, k2 = _checked(samples, k1, len(samples), k2, weight)
        return _rerank_by_paper(query, gallery, samples, row, (k1, k2, weight), chunk)
    samples = np.concatenate([query, gallery]).astype(np.float32, copy=False)
    k1, k2 = _checked(samples, k1, len(samples) - 1, k2, weight)
    return _rerank_as_field(query, gallery, samples, (k1, k2, weight), chunk)


def _joined(
    query: np.ndarray, gallery: np.ndarray, gallery_row: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Each sample once, the gallery first, and the row of every query in that array."""
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise RetrievalError(
            f"query embeddings are {query.shape} and gallery embeddings {gallery.shape}; expected "
            "(samples, width) with one width"
        )
    gallery_row = np.full(len(query), -1) if gallery_row is None else np.asarray(gallery_row)
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


def _checked(
    samples: np.ndarray, k1: int | None, most: int, k2: int | None, weight: float
) -> tuple[int, int]:
    """k1, at most `most`, and k2: those given, or the defaults."""
    k1 = min(20, most) if k1 is None else k1
    k2 = min(6, k1) if k2 is None else k2
    if not 1 <= k1 <= most:
        raise RetrievalError(f"k1={k1}: expected 1 to {most}, the number of samples to choose from")
    if not 1 <= k2 <= k1:
        raise RetrievalError(f"k2={k2}: expected 1 to k1={k1}")
    if not 0 <= weight <= 1:
        raise RetrievalError(f"weight={weight}: expected 0 to 1, the share of the plain distance")
    if not np.isfinite(samples).all():
        raise RetrievalError("embeddings are not finite; re-ranking needs finite ones")
    return k1, k2


def _entries_with(entries: sparse.coo_array, data: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array((data, (entries.row, entries.col)), shape=entries.shape)


def _rerank_by_paper(
    query: np.ndarray,
    gallery: np.ndarray,
    samples: np.ndarray,
    row: np.ndarray,
    settings: tuple[int, int, float],
    chunk: int | None,
) -> Iterator[tuple[slice, np.ndarray]]:
    k1, k2, weight = settings
    nearest, _ = nearest_samples(samples, k1, chunk)
    star = reciprocal_sets(nearest, (k1 + 1) // 2)
    near = _entries_with(star, np.exp(-pair_distances(samples, star)))
    encoding = mean_over_neighbours(near, nearest[:, :k2])
    holders = encoding[: len(gallery)].T.tocsr()
    sums = encoding.sum(axis=1)

    def jaccard(query_number: int) -> np.ndarray:
        own = row[query_number]
        smaller = _sum_of_minima(encoding, own, holders)
        # The larger of two numbers is their sum minus the smaller.
        return 1 - smaller / (sums[own] + sums[: len(gallery)] - smaller)

    chunk = chunk or max(1, BLOCK_ELEMENTS // max(1, len(gallery)))
    return _mixed(distance_chunks(query, gallery, chunk), jaccard, weight)


def _rerank_as_field(
    query: np.ndarray,
    gallery: np.ndarray,
    samples: np.ndarray,
    settings: tuple[int, int, float],
    chunk: int | None,
) -> Iterator[tuple[slice, np.ndarray]]:
    k1, k2, weight = settings
    nearest, farthest = nearest_samples(samples, k1 + 1, chunk)
    largest = np.maximum(np.square(farthest), np.finfo(np.float32).tiny)
    # Python rounds a half to the even number, as numpy does.
    star = reciprocal_sets(nearest, round(k1 / 2) + 1, more_than_two_thirds=True)
    near = np.exp(-np.square(pair_distances(samples, star)) / largest[star.row])
    near /= np.bincount(star.row, near).astype(np.float32)[star.row]
    encoding = _half(_entries_with(star, near))
    if k2 > 1:
        encoding = _half(mean_over_neighbours(encoding, nearest[:, :k2]))
    # In half precision the order of a sum counts: it is that of the samples.
    encoding.sort_indices()
    holders = encoding[len(query) :].T.tocsr()
    holders.data = holders.data.astype(np.float16)

    def squared() -> Iterator[tuple[slice, np.ndarray]]:
        size = chunk or max(1, BLOCK_ELEMENTS // max(1, len(gallery)))
        for rows, distances in distance_chunks(query, gallery, size):
            yield rows, np.square(distances, out=distances) / largest[rows, None]

    def jaccard(query_number: int) -> np.ndarray:
        smaller = _half_sum_of_minima(encoding, query_number, holders)
        return 1 - smaller / (2 - smaller)

    return _mixed(squared(), jaccard, weight)


def _half(matrix: sparse.csr_array) -> sparse.csr_array:
    """Values rounded to half precision, as float32, which sparse arithmetic needs."""
    matrix.data = matrix.data.astype(np.float16).astype(np.float32)
    return matrix


def _mixed(
    chunks: Iterator[tuple[slice, np.ndarray]], jaccard: Callable[[int], np.ndarray], weight: float
) -> Iterator[tuple[slice, np.ndarray]]:
    """The distances d* from those of `chunks` and the d_J of each query to the gallery."""
    for rows, distances in chunks:
        np.multiply(distances, np.float32(weight), out=distances)
        for query_number, mixed in zip(range(rows.start, rows.stop), distances, strict=True):
            share = jaccard(query_number)
            # Half precision stays half precision here.
            np.add(mixed, share * share.dtype.type(1 - weight), out=mixed, casting="same_kind")
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


def _half_sum_of_minima(encoding: sparse.csr_array, own: int, holders: sparse.csr_array) -> np.ndarray:
    """As `_sum_of_minima`, added up in half precision, column by column, as the field's code does."""
    total = np.zeros(holders.shape[1], dtype=np.float16)
    entries = slice(encoding.indptr[own], encoding.indptr[own + 1])
    for column, value in zip(encoding.indices[entries], encoding.data[entries], strict=True):
        held = slice(holders.indptr[column], holders.indptr[column + 1])
        total[holders.indices[held]] += np.minimum(holders.data[held], np.float16(value))
    return total
