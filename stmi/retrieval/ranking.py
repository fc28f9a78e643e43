"""Embeddings of samples, and the ranking of a gallery by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from stmi.retrieval.metrics import RerankVariant, RetrievalError, as_distances, check_finite, opposite_cosines
from stmi.retrieval.reranking import rerank


@dataclass(frozen=True)
class Embeddings:
    """Features of samples, all in the same order.

    Attributes:
        features: float32 `(samples, width)` by name (`stmi.model.FEATURES`), as the model gives them, not
            normalised. `numpy.savez(file, **features)` stores them, and `Embeddings(dict(numpy.load(file)))`
            reads them.
    """

    features: Mapping[str, npt.NDArray[np.float32]]

    def __len__(self) -> int:
        """Number of samples."""
        return len(next(iter(self.features.values())))

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        """One feature, float32 `(samples, width)`.

        Raises:
            RetrievalError: There is none of this name.
        """
        if name not in self.features:
            raise RetrievalError(f"feature {name!r}: expected one of {', '.join(self.features)}")
        return self.features[name]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """All samples of some embeddings of one run, in the order given.

        Raises:
            RetrievalError: There are none, or they have different features.
        """
        names = [tuple(part.features) for part in parts]
        if len(set(names)) != 1:
            raise RetrievalError(f"embeddings with the features {names}: expected the same ones in each part")
        return cls({name: np.concatenate([part[name] for part in parts]) for name in names[0]})


@dataclass(frozen=True)
class Ranking:
    """The gallery as each query ranks it.

    Attributes:
        order: Rows of the gallery from nearest to farthest, int64 `(queries, gallery)`; ties by row.
        distance: Distance of each of these, rising, float32 `(queries, gallery)`: Euclidean between
            normalised features, 0 to 2; or d* of `stmi.retrieval.reranking`.
    """

    order: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float32]


def rank(
    query: np.ndarray,
    gallery: np.ndarray,
    reranked: bool = False,
    gallery_row: npt.NDArray[np.integer] | None = None,
    variant: RerankVariant = "field",
) -> Ranking:
    """Rank a gallery for every query, as `stmi.retrieval.metrics.evaluate` does, with nothing left out.

    Args:
        query: float32 `(queries, width)`, of any length.
        gallery: float32 `(gallery, width)`, of any length.
        reranked: Use k-reciprocal re-ranking.
        gallery_row: For re-ranking, as in `stmi.retrieval.reranking.rerank`.
        variant: Which re-ranking.

    Raises:
        RetrievalError: The widths differ, or a feature is not finite.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise RetrievalError(
            f"query features are {query.shape} and gallery features {gallery.shape}; expected "
            "(samples, width) with one width"
        )
    check_finite(query, gallery)
    shape = (len(query), len(gallery))
    order, distance = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32)
    if reranked:
        chunks = rerank(query, gallery, gallery_row=gallery_row, variant=variant)
    else:
        chunks = opposite_cosines(query, gallery)
    for rows, values in chunks:
        order[rows] = np.argsort(values, axis=1, kind="stable")
        distances = values if reranked else as_distances(values)
        distance[rows] = np.take_along_axis(distances, order[rows], axis=1)
    return Ranking(order, distance)
