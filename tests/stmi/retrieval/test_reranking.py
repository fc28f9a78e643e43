from functools import partial

import numpy as np
import pytest

from stmi.retrieval import metrics as retrieval_metrics
from stmi.retrieval import reranking
from stmi.retrieval.metrics import RetrievalError, RetrievalSet
from tests.stmi import golden
from tests.tolerances import GOLDEN_VALUE, RERANKED_DISTANCE

rerank_by_paper = partial(reranking.rerank, variant="paper")


def whole(chunks) -> np.ndarray:
    return np.concatenate([distances for _, distances in chunks])


def by_the_formulas(query, gallery, k1, k2, weight, rows=None) -> np.ndarray:
    """Zhong et al. 2017 word for word: sets, loops, float64."""
    rows = list(range(len(gallery), len(gallery) + len(query))) if rows is None else rows
    samples = np.concatenate([gallery, query]).astype(np.float64)[: max(len(gallery), max(rows) + 1)]
    unit = samples / np.linalg.norm(samples, axis=1, keepdims=True)
    everyone = range(len(unit))
    d = [[float(np.linalg.norm(unit[p] - unit[q])) if p != q else 0.0 for q in everyone] for p in everyone]

    def nearest(p, k):
        others = sorted((q for q in everyone if q != p), key=lambda q: (round(d[p][q], 9), q))
        return [p, *others[: k - 1]]

    def reciprocal(p, k):
        return {q for q in nearest(p, k) if p in nearest(q, k)}

    def star(p, k):
        found = reciprocal(p, k)
        for q in reciprocal(p, k):
            candidate = reciprocal(q, -(-k // 2))
            if len(reciprocal(p, k) & candidate) >= 2 / 3 * len(candidate):
                found |= candidate
        return found

    encoding = [{q: np.exp(-d[p][q]) for q in members} for p, members in ((p, star(p, k1)) for p in everyone)]
    expanded = [[sum(encoding[q].get(j, 0) for q in nearest(p, k2)) / k2 for j in everyone] for p in everyone]
    return np.array(
        [
            [
                (1 - weight)
                * (1 - sum(map(min, expanded[p], expanded[g])) / sum(map(max, expanded[p], expanded[g])))
                + weight * d[p][g]
                for g in range(len(gallery))
            ]
            for p in rows
        ]
    )


def unit(samples) -> np.ndarray:
    return samples / np.linalg.norm(samples, axis=1, keepdims=True)


def clustered(seed, count, identities=5, width=6, noise=0.7) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(identities, width))
    return (centres[np.arange(count) % identities] + noise * random.normal(size=(count, width))).astype("f4")


def by_the_fields_loops(query, gallery, k1, k2, weight) -> np.ndarray:
    """What the field's code computes, with its loops, for normalised embeddings."""
    samples = np.concatenate([query, gallery]).astype(np.float32)
    squares = np.square(samples).sum(1)
    squared = squares[:, None] + squares - 2 * samples @ samples.T
    distance = (squared / squared.max(axis=0)).T
    order = np.argsort(distance, axis=1)

    def reciprocal(p, k):
        near = order[p, : k + 1]
        return near[[p in order[q, : k + 1] for q in near]]

    encoding = np.zeros_like(distance, dtype=np.float16)
    for p in range(len(samples)):
        own = star = reciprocal(p, k1)
        for q in own:
            candidate = reciprocal(q, int(np.around(k1 / 2)))
            if len(np.intersect1d(candidate, own)) > 2 / 3 * len(candidate):
                star = np.union1d(star, candidate)
        near = np.exp(-distance[p, star])
        encoding[p, star] = near / near.sum()
    if k2 > 1:
        encoding = np.stack([encoding[order[p, :k2]].mean(axis=0) for p in range(len(samples))])
    jaccard = np.zeros((len(query), len(samples)), dtype=np.float16)
    for p in range(len(query)):
        smaller = np.zeros(len(samples), dtype=np.float16)
        for column in range(len(samples)):
            smaller += np.minimum(encoding[p, column], encoding[:, column])
        jaccard[p] = 1 - smaller / (2 - smaller)
    return (jaccard * np.float16(1 - weight) + distance[: len(query)] * weight)[:, len(query) :]


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (10, 3, 0.3), (20, 1, 0.0)])
def test_distances_are_those_of_the_fields_code(k1, k2, weight):
    measured = {name: values.numpy() for name, values in golden.load("reranking").items()}
    found = whole(reranking.rerank(measured["query"], measured["gallery"], k1, k2, weight))
    assert found.dtype == np.float32
    expected = measured[f"distance_k1_{k1}_k2_{k2}_lambda_{weight}"]
    assert np.allclose(found, expected, rtol=0, atol=RERANKED_DISTANCE)
    assert np.array_equal(found.argsort(axis=1, kind="stable"), expected.argsort(axis=1, kind="stable"))


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (3, 2), (5, 1), (7, 3), (12, 12)])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_distances_are_those_of_the_fields_loops(k1, k2, weight):
    query, gallery = unit(clustered(0, 9)), unit(clustered(10, 31))
    found = whole(reranking.rerank(query, gallery, k1, k2, weight))
    expected = by_the_fields_loops(query, gallery, k1, k2, weight)
    assert np.allclose(found, expected, rtol=0, atol=RERANKED_DISTANCE)


def test_field_takes_a_query_that_is_in_the_gallery_as_two_samples():
    gallery = clustered(4, 30)
    rows = np.array([3, 17])
    given = whole(reranking.rerank(gallery[rows], gallery, 8, 3, gallery_row=rows))
    assert np.array_equal(given, whole(reranking.rerank(gallery[rows], gallery, 8, 3)))


def test_field_ranks_as_by_distance_with_a_weight_of_one():
    query, gallery = clustered(0, 11), clustered(1, 60)
    plain = whole(retrieval_metrics.distance_chunks(query, gallery))
    assert np.array_equal(whole(reranking.rerank(query, gallery, weight=1.0)).argsort(), plain.argsort())


def test_field_takes_embeddings_that_are_all_equal():
    same = np.ones((12, 4), dtype=np.float32)
    assert np.isfinite(whole(reranking.rerank(same[:3], same))).all()


def test_field_leaves_out_the_sample_itself_from_the_neighbours_it_counts():
    with pytest.raises(RetrievalError, match="k1=15: expected 1 to 14"):
        reranking.rerank(clustered(0, 3), clustered(1, 12), k1=15)


@pytest.mark.parametrize("variant", ["field", "paper"])
def test_retrieval_gains_where_identities_are_clusters(variant):
    identities = np.arange(120) % 6
    gallery = RetrievalSet(clustered(1, 120, 6, 16, 1.3), identities, np.ones(120))
    query = RetrievalSet(clustered(0, 30, 6, 16, 1.3), identities[:30], np.zeros(30))
    plain = retrieval_metrics.evaluate(query, gallery).mean_average_precision
    chunks = reranking.rerank(query.embedding, gallery.embedding, variant=variant)
    assert retrieval_metrics.score(chunks, query, gallery).mean_average_precision > plain + 0.05


@pytest.mark.parametrize("variant", ["field", "paper"])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_result_does_not_depend_on_the_chunk(chunk, variant):
    query, gallery = clustered(0, 11), clustered(1, 60)
    chunks = list(reranking.rerank(query, gallery, chunk=chunk, variant=variant))
    assert chunks[0][1].shape[0] == min(chunk, 11)
    expected = whole(reranking.rerank(query, gallery, variant=variant))
    assert np.allclose(
        whole(iter(chunks)), expected, atol=RERANKED_DISTANCE if variant == "field" else GOLDEN_VALUE
    )


@pytest.mark.parametrize("variant", ["field", "paper"])
def test_length_of_an_embedding_does_not_matter(variant):
    query, gallery = clustered(0, 11), clustered(1, 60)
    lengths = np.random.default_rng(0).uniform(0.1, 10, (60, 1)).astype("f4")
    found = whole(reranking.rerank(query, gallery * lengths, variant=variant))
    expected = whole(reranking.rerank(query, gallery, variant=variant))
    assert np.allclose(found, expected, atol=RERANKED_DISTANCE if variant == "field" else GOLDEN_VALUE)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (3, 1), (4, 2), (7, 3), (10, 6), (12, 12)])
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_are_those_of_the_formulas(k1, k2, seed):
    query, gallery = clustered(seed, 9), clustered(seed + 10, 31)
    found = whole(rerank_by_paper(query, gallery, k1, k2, 0.3))
    assert found.dtype == np.float32
    assert np.allclose(found, by_the_formulas(query, gallery, k1, k2, 0.3), atol=GOLDEN_VALUE)


def test_equal_distances_keep_row_order_also_at_distance_zero():
    # All samples are one of four corners: there are few distances, and many samples are equal.
    random = np.random.default_rng(3)
    corners = np.eye(4, dtype=np.float32)
    query, gallery = corners[random.integers(0, 4, 6)], corners[random.integers(0, 4, 26)]
    found = whole(rerank_by_paper(query, gallery, 5, 3, 0.3))
    assert np.allclose(found, by_the_formulas(query, gallery, 5, 3, 0.3), atol=GOLDEN_VALUE)


def test_a_query_that_is_in_the_gallery_counts_once():
    gallery = clustered(4, 30)
    rows = np.array([3, -1, 17, 29, -1])
    query = np.where(rows[:, None] >= 0, gallery[rows], clustered(5, 5))
    found = whole(rerank_by_paper(query, gallery, 8, 3, 0.3, gallery_row=rows))
    expected = by_the_formulas(query[rows < 0], gallery, 8, 3, 0.3, [3, 30, 17, 29, 31])
    # The plain distance of a sample from itself is the root of a rounding error.
    found[[0, 2, 3], rows[[0, 2, 3]]] = expected[[0, 2, 3], rows[[0, 2, 3]]] = 0
    assert np.allclose(found, expected, atol=GOLDEN_VALUE)
    twice = whole(rerank_by_paper(query, gallery, 8, 3, 0.3))
    assert np.abs(twice - found).max() > 0.01


def test_a_weight_of_one_is_the_plain_distance():
    query, gallery = clustered(0, 11), clustered(1, 60)
    plain = whole(retrieval_metrics.distance_chunks(query, gallery))
    assert np.array_equal(whole(rerank_by_paper(query, gallery, weight=1.0)), plain)


def test_a_weight_of_zero_is_a_jaccard_distance():
    query, gallery = clustered(0, 10, noise=0.1), clustered(1, 60, noise=0.1)
    jaccard = whole(rerank_by_paper(query, gallery, 8, 3, weight=0.0))
    assert jaccard.min() >= -1e-6
    same = (np.arange(10) % 5)[:, None] == np.arange(60) % 5
    assert (jaccard[~same] == 1).all(), "samples of two clusters share no neighbour"
    assert jaccard[same].mean() < 0.8


def test_an_embedding_of_zeros_is_near_to_itself_alone():
    query, gallery = clustered(0, 3), clustered(1, 30)
    gallery[7] = 0
    found = whole(rerank_by_paper(query, gallery, weight=0.0, k1=5, k2=1))
    assert (found[:, 7] == 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": 0}, "k1=0: expected 1 to 15"),
        ({"k1": 16}, "k1=16: expected 1 to 15"),
        ({"k1": 4, "k2": 5}, "k2=5: expected 1 to k1=4"),
        ({"k1": 4, "k2": 0}, "k2=0"),
        ({"k1": 8, "weight": 1.5}, r"weight=1\.5: expected 0 to 1"),
        ({"k1": 8, "weight": float("nan")}, "weight=nan"),
        ({"gallery_row": np.zeros(4, int)}, r"gallery_row is int64 \(4,\); expected integers \(3,\)"),
        ({"gallery_row": np.zeros(3)}, "gallery_row is float64"),
        ({"gallery_row": np.array([0, 12, -1])}, "gallery_row has values from -1 to 12; expected -1 to 11"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(RetrievalError, match=message):
        rerank_by_paper(clustered(0, 3), clustered(1, 12), **settings)


def test_unknown_variant_is_refused_and_rows_may_be_a_list():
    query, gallery = clustered(0, 3), clustered(1, 12)
    with pytest.raises(RetrievalError, match="re-ranking 'best' is unknown; expected one of field, paper"):
        reranking.rerank(query, gallery, variant="best")
    rows = [4, -1, 2]
    assert np.array_equal(
        whole(rerank_by_paper(query, gallery, k1=8, gallery_row=rows)),
        whole(rerank_by_paper(query, gallery, k1=8, gallery_row=np.array(rows))),
    )


def test_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(RetrievalError, match=r"query embeddings are \(3, 6\) and gallery .*\(40, 5\)"):
        rerank_by_paper(clustered(0, 3), clustered(1, 40, width=5))
    broken = clustered(1, 40)
    broken[3, 2] = np.nan
    with pytest.raises(RetrievalError, match="embeddings are not finite"):
        rerank_by_paper(clustered(0, 3), broken)
