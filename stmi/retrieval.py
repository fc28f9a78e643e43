"""Retrieval metrics: distances in chunks, junk rules, average precision, mAP and CMC."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

JunkRule = Literal["camera", "scene"]
"""A gallery sample of the query's identity is junk if it has the query's camera, or its scene."""


class RetrievalError(ValueError):
    """The query and gallery cannot be scored."""


@dataclass(frozen=True)
class RetrievalSet:
    """Samples to search with or among.

    Attributes:
        embedding: float32 `(samples, width)`.
        identity: `(samples,)`.
        group: Camera or scene number, whichever the junk rule names, `(samples,)`.
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
        average_precision: Of each query, `(queries,)`; NaN for a query without a match.
    """

    mean_average_precision: float
    cmc: np.ndarray
    average_precision: np.ndarray

    def summary(self) -> dict[str, float]:
        """The metrics of the paper's tables: mAP, rank1, rank5, rank10."""
        ranks = {f"rank{k}": float(self.cmc[min(k, len(self.cmc)) - 1]) for k in (1, 5, 10)}
        return {"mAP": self.mean_average_precision, **ranks}


def normalise(embedding: np.ndarray) -> np.ndarray:
    """Rows of `(samples, width)` scaled to unit length; a zero row stays zero."""
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding / np.maximum(length, 1e-12)


def distance_chunks(
    query: np.ndarray, gallery: np.ndarray, chunk: int = 512
) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances, a few queries at a time, so that the whole matrix is never held.

    Args:
        query: float32 `(queries, width)`.
        gallery: float32 `(gallery, width)`.
        chunk: Queries at a time.

    Yields:
        The rows, and their distances `(rows, gallery)`.
    """
    gallery_squares = np.square(gallery).sum(axis=1)
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        part = query[rows]
        squares = np.square(part).sum(axis=1)[:, None] + gallery_squares - 2 * part @ gallery.T
        yield rows, np.sqrt(np.maximum(squares, 0))


def rank_gallery(distances: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Gallery rows of one query from nearest to farthest, junk left out; ties keep gallery order.

    Args:
        distances: `(gallery,)`.
        junk: Boolean `(gallery,)`.
    """
    order = np.argsort(distances, kind="stable")
    return order[~junk[order]]


def evaluate(query: RetrievalSet, gallery: RetrievalSet, max_rank: int = 50) -> RetrievalMetrics:
    """Search the gallery with every query: mAP and CMC on normalised embeddings.

    A gallery sample of the query's identity and group (camera or scene) is junk: neither hit nor miss.
    A query whose identity has no other sample in the gallery counts in no mean.

    Raises:
        RetrievalError: An embedding is not finite, or no query has a match.
    """
    for name, samples in (("query", query), ("gallery", gallery)):
        if not np.isfinite(samples.embedding).all():
            rows = np.flatnonzero(~np.isfinite(samples.embedding).all(axis=1))
            raise RetrievalError(f"{name} embeddings are not finite, first in row {rows[0]}")
    chunks = distance_chunks(normalise(query.embedding), normalise(gallery.embedding))
    return score(chunks, query, gallery, max_rank)


def score(
    chunks: Iterator[tuple[slice, np.ndarray]],
    query: RetrievalSet,
    gallery: RetrievalSet,
    max_rank: int = 50,
) -> RetrievalMetrics:
    """MAP and CMC from distances that are already known; rules and errors as in `evaluate`."""
    precision = np.full(len(query), np.nan)
    first_hits = np.zeros(max_rank)
    for rows, distances in chunks:
        for i, row in zip(range(rows.start, rows.stop), distances, strict=True):
            same = gallery.identity == query.identity[i]
            hits = same[rank_gallery(row, same & (gallery.group == query.group[i]))]
            ranks = np.flatnonzero(hits)
            if len(ranks) == 0:
                continue
            precision[i] = np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1))
            if ranks[0] < max_rank:
                first_hits[ranks[0]] += 1
    scored = np.count_nonzero(~np.isnan(precision))
    if scored == 0:
        raise RetrievalError(
            f"none of the {len(query)} queries has a match in the gallery of {len(gallery)}; "
            "every query needs its identity under another camera (or scene)"
        )
    return RetrievalMetrics(float(np.nanmean(precision)), np.cumsum(first_hits) / scored, precision)
