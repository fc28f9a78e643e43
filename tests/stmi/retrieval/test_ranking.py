import numpy as np
import pytest

from stmi.retrieval.metrics import RetrievalError
from stmi.retrieval.ranking import Embeddings, rank


def test_ranking_is_by_euclidean_distance_of_unit_vectors():
    query = Embeddings({"G": np.array([[2.0, 0.0]], dtype=np.float32)})
    gallery = Embeddings({"G": np.array([[0, 3], [-1, 0], [5, 0]], dtype=np.float32)})
    found = rank(query["G"], gallery["G"])
    assert found.order.tolist() == [[2, 0, 1]]
    assert found.distance[0] == pytest.approx([0, 2**0.5, 2])


def test_equal_distances_keep_gallery_order():
    gallery = np.array([[0, 1], [1, 0], [0, 2], [2, 0]], dtype=np.float32)
    assert rank(np.array([[3, 0]], dtype=np.float32), gallery).order.tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize("reranked", [False, True])
@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones((1, 3), np.float32), r"query features are \(1, 3\) and gallery features \(2, 2\)"),
        (np.full((1, 2), np.nan, np.float32), "query embeddings are not finite, first in row 0"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(query, message, reranked):
    with pytest.raises(RetrievalError, match=message):
        rank(query, np.ones((2, 2), np.float32), reranked)


def test_feature_that_there_is_not_is_refused():
    embeddings = Embeddings({"U": np.ones((2, 3), np.float32), "G": np.ones((2, 3), np.float32)})
    with pytest.raises(RetrievalError, match="feature 'V': expected one of U, G"):
        embeddings["V"]
    with pytest.raises(RetrievalError, match="expected the same ones in each part"):
        Embeddings.concatenate([embeddings, Embeddings({"U": embeddings["U"]})])
