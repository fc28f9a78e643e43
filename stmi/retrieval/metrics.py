"""Retrieval metrics: distances in chunks, junk rules, average precision, mAP and CMC."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from stmi.processors import usable_processors

JunkRule = Literal["camera", "scene", "none"]
"""A gallery sample of the query's identity is junk if it has the query's camera, or its scene; or only if it
is the query itself."""

RerankVariant = Literal["field", "paper"]
"""Which k-reciprocal re-ranking: the code that the field uses, or the paper's formulas; see `reranking`."""

CHUNK_ELEMENTS = 8 * 2**20
"""Distances computed at a time; with fewer, matrix products are slower."""


def junk_groups(junk: JunkRule, camera_id: np.ndarray, scene_id: np.ndarray) -> np.ndarray:
    """What a query and its junk have in common, `(samples,)`; a sample without a camera is alone in its.

    Args:
        junk: The rule.
        camera_id: Camera of each sample, `(samples,)`; -1 for none.
        scene_id: Scene of each sample, `(samples,)`.
    """
    if junk == "scene":
        return scene_id
    own = -1 - np.arange(len(camera_id))
    return own if junk == "none" else np.where(camera_id < 0, own, camera_id)


def applied_rule(junk: JunkRule, camera_id: np.ndarray) -> JunkRule:
    """The rule that `junk_groups` applies: of cameras where there are any, else `none`."""
    return "none" if junk == "camera" and (camera_id < 0).all() else junk


class RetrievalError(ValueError):
    """The query and gallery cannot be scored."""


@dataclass(frozen=True)
class RetrievalSet:
    """Samples to search with or among.

    Attributes:
        embedding: float32 `(samples, width)`.
        identity: `(samples,)`.
        group: Equal numbers for a query and its junk, as `junk_groups` gives them, `(samples,)`.
    """

    embedding: np.ndarray
    identity: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(frozen=True)
class RetrievalMetrics:
    """Metrics over the queries that have a match in the gallery; all are fractions.

    Attributes:
        mean_average_precision: mAP.
        cmc: Share of queries with a match among the first k, at index k - 1.
        average_precision: Average precision of each query, `(queries,)`; NaN for a query without a match.
        first_match_rank: Rank of the first match of each query, `(queries,)`, from 1, junk left out; 0 for a
            query without a match.
    """

    mean_average_precision: float
    cmc: np.ndarray
    average_precision: np.ndarray
    first_match_rank: np.ndarray

    def summary(self) -> dict[str, float]:
        """The metrics of the paper's tables: mAP, rank1, rank5, rank10."""
        ranks = {f"rank{k}": float(self.cmc[min(k, len(self.cmc)) - 1]) for k in (1, 5, 10)}
        return {"mAP": self.mean_average_precision, **ranks}


def normalise(embedding: np.ndarray) -> np.ndarray:
    """Rows of `(samples, width)` scaled to unit length; a zero row stays zero."""
    return embedding / _lengths(embedding)[:, None]


def _lengths(embedding: np.ndarray) -> np.ndarray:
    return np.maximum(np.sqrt(np.einsum("ij,ij->i", embedding, embedding)), 1e-12)


def distance_chunks(
    query: np.ndarray, gallery: np.ndarray, chunk: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances of normalised rows, a few queries at a time: the whole matrix is never held.

    Args:
        query: float32 `(queries, width)`, of any length.
        gallery: float32 `(gallery, width)`, of any length.
        chunk: Queries at a time; None for as many as give 32 MB of distances, at least one.

    Yields:
        The rows, and their distances `(rows, gallery)`, 0 to 2.
    """
    for rows, cosines in opposite_cosines(query, gallery, chunk):
        yield rows, as_distances(cosines)


def as_distances(cosines: np.ndarray) -> np.ndarray:
    """Euclidean distances of normalised rows from minus their cosines; computed in place."""
    # |a - b|^2 = 2 - 2 a.b for rows of length one; a zero row has the distance of a right angle.
    distances = np.multiply(cosines, 2, out=cosines)
    np.add(distances, 2, out=distances)
    np.maximum(distances, 0, out=distances)
    return np.sqrt(distances, out=distances)


def opposite_cosines(
    query: np.ndarray, gallery: np.ndarray, chunk: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Minus the cosines between rows: the same ranking as by distance, with fewer passes over memory.

    Args:
        query: As in `distance_chunks`.
        gallery: As in `distance_chunks`.
        chunk: As in `distance_chunks`.

    Yields:
        The rows, and `(rows, gallery)`, -1 to 1.
    """
    chunk = chunk or max(1, CHUNK_ELEMENTS // max(1, len(gallery)))
    # Divide the products, not the gallery: a normalised copy of the gallery may not fit in memory.
    gallery_lengths = _lengths(gallery)
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        cosines = -normalise(query[rows]) @ gallery.T
        cosines /= gallery_lengths
        yield rows, cosines


def rank_gallery(distances: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Gallery rows of one query from nearest to farthest, junk left out; ties keep gallery order.

    Args:
        distances: `(gallery,)`.
        junk: Boolean `(gallery,)`.
    """
    order = np.argsort(distances, kind="stable")
    return order[~junk[order]]


def evaluate(
    query: RetrievalSet, gallery: RetrievalSet, max_rank: int = 50, chunk: int | None = None
) -> RetrievalMetrics:
    """Search the gallery with every query: mAP and CMC on normalised embeddings.

    A gallery sample of the query's identity and group (camera or scene) is junk: neither hit nor miss.
    A query without a match in the gallery does not count in the means.

    Args:
        query: The samples to search for.
        gallery: The samples to search among.
        max_rank: The last rank of the CMC.
        chunk: Queries at a time, as in `distance_chunks`.

    Raises:
        RetrievalError: An embedding is not finite, or no query has a match.
    """
    check_finite(query.embedding, gallery.embedding)
    return score(opposite_cosines(query.embedding, gallery.embedding, chunk), query, gallery, max_rank)


def check_finite(query: np.ndarray, gallery: np.ndarray) -> None:
    """Refuse embeddings `(samples, width)` that are not finite.

    Raises:
        RetrievalError: Names the first such row.
    """
    for name, embedding in (("query", query), ("gallery", gallery)):
        # The sum of a row shows it in little memory. Large finite numbers may also sum to infinity, so check
        # the rows themselves.
        suspects = np.flatnonzero(~np.isfinite(np.einsum("ij->i", embedding)))
        rows = suspects[~np.isfinite(embedding[suspects]).all(axis=1)]
        if len(rows):
            raise RetrievalError(f"{name} embeddings are not finite, first in row {rows[0]}")


def score(
    chunks: Iterator[tuple[slice, np.ndarray]],
    query: RetrievalSet,
    gallery: RetrievalSet,
    max_rank: int = 50,
) -> RetrievalMetrics:
    """Compute mAP and CMC from distances, or from numbers with the same ranking, by the rules of `evaluate`.

    Args:
        chunks: Rows of the queries, and their distances `(rows, gallery)`, each in an array of its own: it is
            still read after the next one was asked for.
        query: The samples to search for.
        gallery: The samples to search among.
        max_rank: The last rank of the CMC.

    Raises:
        RetrievalError: No query has a match.
    """
    precision = np.full(len(query), np.nan)
    first_rank = np.zeros(len(query), dtype=np.int64)
    rows_by_identity = _rows_by_identity(gallery.identity)
    found = np.arange(1, len(gallery) + 1)

    def rank(rows: slice, distances: np.ndarray, ascending: Iterator[np.ndarray]) -> None:
        for i, row, sorted_row in zip(range(rows.start, rows.stop), distances, ascending, strict=True):
            same = rows_by_identity.get(int(query.identity[i]), _NONE)
            is_junk = gallery.group[same] == query.group[i]
            ranks = _ranks(row, sorted_row, same[~is_junk], same[is_junk])
            if len(ranks) == 0:
                continue
            precision[i] = (found[: len(ranks)] / (ranks + 1)).sum() / len(ranks)
            first_rank[i] = ranks[0] + 1

    processors = usable_processors()
    with ThreadPoolExecutor(processors) as threads:
        # Most of the time goes into sorting. NumPy sorts in one thread and lets others run: while a chunk is
        # sorted, the one before it is ranked here.
        waiting: tuple[slice, np.ndarray, Iterator[np.ndarray]] | None = None
        for rows, distances in chunks:
            parts = threads.map(np.sort, np.array_split(distances, processors))
            if waiting is not None:
                rank(*waiting)
            waiting = rows, distances, chain.from_iterable(parts)
        if waiting is not None:
            rank(*waiting)
    matched = first_rank > 0
    if not matched.any():
        raise RetrievalError(
            f"none of the {len(query)} queries has a match in the gallery of {len(gallery)}; "
            "every query needs its identity under another camera (or scene)"
        )
    # Number of queries with their first match at each rank, up to the last rank.
    first_hits = np.bincount(first_rank[matched], minlength=max_rank + 1)[1 : max_rank + 1]
    return RetrievalMetrics(
        mean_average_precision=float(np.nanmean(precision)),
        cmc=np.cumsum(first_hits) / np.count_nonzero(matched),
        average_precision=precision,
        first_match_rank=first_rank,
    )


_NONE = np.empty(0, dtype=np.int64)


def _rows_by_identity(identity: np.ndarray) -> dict[int, np.ndarray]:
    """Rows of each identity."""
    order = np.argsort(identity, kind="stable")
    names, starts = np.unique(identity[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def _ranks(row: np.ndarray, ascending: np.ndarray, matches: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Ranks of the matches from 0, ascending, junk left out, as in `rank_gallery`; nothing else is ranked.

    Args:
        row: Distances of one query, `(gallery,)`.
        ascending: The same, sorted.
        matches: Gallery rows that are hits.
        junk: Gallery rows that do not count.
    """
    near_to_far = row[matches]
    order = near_to_far.argsort(kind="stable")
    near_to_far = near_to_far[order]
    ranks = ascending.searchsorted(near_to_far)
    next_one = np.minimum(ranks + 1, len(ascending) - 1)
    tied = (ascending[next_one] == near_to_far) & (next_one > ranks)
    junk_near_to_far = row[junk]
    junk_near_to_far.sort()
    ranks -= junk_near_to_far.searchsorted(near_to_far)
    for i in tied.nonzero()[0]:
        # Equal distances keep gallery order, which does not follow from the values.
        own = matches[order[i]]
        ranks[i] += np.count_nonzero(row[:own] == near_to_far[i])
        ranks[i] -= np.count_nonzero(row[junk[junk < own]] == near_to_far[i])
    return ranks
