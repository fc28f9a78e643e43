import numpy as np
import pytest

from stmi.retrieval import metrics as retrieval_metrics
from stmi.retrieval.metrics import RetrievalSet
from tests.stmi import golden
from tests.tolerances import GOLDEN_VALUE


def samples(embedding, identity, group) -> RetrievalSet:
    return RetrievalSet(np.asarray(embedding, dtype=np.float32), np.asarray(identity), np.asarray(group))


def random_sets(seed: int = 0) -> tuple[RetrievalSet, RetrievalSet]:
    random = np.random.default_rng(seed)

    def draw(count: int) -> RetrievalSet:
        return samples(
            random.normal(size=(count, 6)), random.integers(0, 8, count), random.integers(0, 3, count)
        )

    return draw(30), draw(120)


@pytest.mark.parametrize("rule", ["camera", "scene"])
def test_metrics_equal_the_released_ones_under_both_junk_rules(rule):
    arrays = {name: value.numpy() for name, value in golden.load("retrieval_metrics").items()}
    groups = {"camera": ("q_camids", "g_camids"), "scene": ("q_sceneids", "g_sceneids")}[rule]
    query = samples(np.zeros((40, 1)), arrays["q_pids"], arrays[groups[0]])
    gallery = samples(np.zeros((200, 1)), arrays["g_pids"], arrays[groups[1]])
    metrics = retrieval_metrics.score(iter([(slice(0, 40), arrays["dist"])]), query, gallery)
    assert metrics.mean_average_precision == pytest.approx(float(arrays[f"map_{rule}"]), abs=GOLDEN_VALUE)
    assert np.allclose(metrics.cmc, arrays[f"cmc_{rule}"], atol=GOLDEN_VALUE)
    assert np.isnan(metrics.average_precision[0])


def test_metrics_equal_a_naive_loop():
    query, gallery = random_sets()
    unit = [retrieval_metrics.normalise(s.embedding) for s in (query, gallery)]
    precisions, first = [], []
    for i in range(len(query)):
        ranked = sorted(range(len(gallery)), key=lambda j: float(np.linalg.norm(unit[0][i] - unit[1][j])))
        kept = [
            j
            for j in ranked
            if not (gallery.identity[j] == query.identity[i] and gallery.group[j] == query.group[i])
        ]
        hits = [gallery.identity[j] == query.identity[i] for j in kept]
        found = [k + 1 for k, hit in enumerate(hits) if hit]
        precisions.append(sum((n + 1) / rank for n, rank in enumerate(found)) / len(found))
        first.append(found[0])
    metrics = retrieval_metrics.evaluate(query, gallery)
    assert metrics.average_precision == pytest.approx(precisions, abs=GOLDEN_VALUE)
    assert metrics.mean_average_precision == pytest.approx(np.mean(precisions), abs=GOLDEN_VALUE)
    assert metrics.first_match_rank.tolist() == first
    for k in (1, 5, 10):
        assert metrics.summary()[f"rank{k}"] == pytest.approx(np.mean(np.array(first) <= k))


def test_result_does_not_depend_on_the_chunk():
    query, gallery = random_sets()
    whole = np.concatenate(
        [d for _, d in retrieval_metrics.distance_chunks(query.embedding, gallery.embedding)]
    )
    parts = np.concatenate(
        [d for _, d in retrieval_metrics.distance_chunks(query.embedding, gallery.embedding, 7)]
    )
    assert np.allclose(whole, parts, atol=GOLDEN_VALUE)


@pytest.mark.parametrize("chunk", [1, 7])
def test_metrics_do_not_depend_on_the_chunk(chunk):
    query, gallery = random_sets()
    whole = retrieval_metrics.evaluate(query, gallery)
    parts = retrieval_metrics.evaluate(query, gallery, chunk=chunk)
    assert np.array_equal(parts.average_precision, whole.average_precision)
    assert np.array_equal(parts.first_match_rank, whole.first_match_rank)
    assert np.array_equal(parts.cmc, whole.cmc)


def test_distances_are_those_of_normalised_rows():
    query, gallery = random_sets()
    unit = [retrieval_metrics.normalise(s.embedding).astype(np.float64) for s in (query, gallery)]
    expected = np.linalg.norm(unit[0][:, None] - unit[1][None], axis=2)
    ((_, distances),) = retrieval_metrics.distance_chunks(query.embedding, gallery.embedding)
    assert np.allclose(distances, expected, atol=1e-3)  # the root of a rounding error, near zero
    assert np.allclose(distances**2, expected**2, atol=GOLDEN_VALUE)


def test_equal_distances_keep_gallery_order():
    random = np.random.default_rng(0)
    query, gallery = random_sets()
    distances = random.integers(0, 6, (len(query), len(gallery))).astype(np.float32)
    expected = []
    for i, row in enumerate(distances):
        same = gallery.identity == query.identity[i]
        ranked = retrieval_metrics.rank_gallery(row, same & (gallery.group == query.group[i]))
        ranks = np.flatnonzero(same[ranked])
        expected.append(np.mean(np.arange(1, len(ranks) + 1) / (ranks + 1)))
    metrics = retrieval_metrics.score(iter([(slice(0, len(query)), distances)]), query, gallery)
    assert metrics.average_precision == pytest.approx(expected)


def test_perfect_embeddings_score_one_and_reversed_ones_score_least():
    identity = np.repeat(np.arange(3), 2)
    angle = identity * 2.0
    embedding = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    query, gallery = samples(embedding, identity, np.zeros(6)), samples(embedding, identity, np.ones(6))
    assert retrieval_metrics.evaluate(query, gallery).summary() == {
        "mAP": 1,
        "rank1": 1,
        "rank5": 1,
        "rank10": 1,
    }
    reversed_gallery = samples(-embedding, identity, np.ones(6))
    assert retrieval_metrics.evaluate(query, reversed_gallery).summary()["rank1"] == 0


def test_same_camera_matches_are_junk_neither_hit_nor_miss():
    query = samples([[1, 0]], [7], [0])
    gallery = samples([[1, 0], [0.9, 0.1], [0, 1]], [7, 7, 8], [0, 1, 0])
    metrics = retrieval_metrics.evaluate(query, gallery)
    assert metrics.mean_average_precision == 1


def test_query_without_a_match_does_not_count_in_the_means():
    query = samples([[1, 0], [0, 1]], [7, 9], [0, 0])
    gallery = samples([[1, 0]], [7], [1])
    metrics = retrieval_metrics.evaluate(query, gallery)
    assert metrics.mean_average_precision == 1
    assert np.isnan(metrics.average_precision[1])
    assert metrics.first_match_rank.tolist() == [1, 0]


def test_no_query_with_a_match_is_an_error():
    query, gallery = samples([[1, 0]], [7], [0]), samples([[1, 0]], [7], [0])
    with pytest.raises(retrieval_metrics.RetrievalError, match="none of the 1 queries has a match"):
        retrieval_metrics.evaluate(query, gallery)


@pytest.mark.parametrize("row", [[np.nan, 0], [np.inf, 0], [np.inf, -np.inf]])
def test_embeddings_that_are_not_finite_are_refused(row):
    # The first row is finite, though its sum is not.
    gallery = samples([[3e38, 3e38], row], [7, 7], [1, 1])
    message = "gallery embeddings are not finite, first in row 1"
    with pytest.raises(retrieval_metrics.RetrievalError, match=message):
        retrieval_metrics.evaluate(samples([[1, 0]], [7], [0]), gallery)


@pytest.mark.parametrize(("rule", "cameras"), [("none", 3), ("none", 0), ("camera", 0), ("camera", 3)])
def test_without_cameras_or_a_rule_only_the_query_itself_is_junk(rule, cameras):
    random = np.random.default_rng(3)
    count = 40
    values = random.normal(size=(count, 6)).astype(np.float32)
    identity = random.integers(0, 6, count)
    camera = random.integers(0, cameras, count) if cameras else np.full(count, -1)
    group = retrieval_metrics.junk_groups(rule, camera, np.full(count, -1))
    both = samples(values, identity, group)
    unit = retrieval_metrics.normalise(values)
    precisions = []
    for i in range(count):
        order = np.argsort(np.linalg.norm(unit - unit[i], axis=1), kind="stable")
        shares_camera = cameras and rule == "camera"
        is_junk = [
            j == i or (shares_camera and identity[j] == identity[i] and camera[j] == camera[i])
            for j in range(count)
        ]
        hits = [identity[j] == identity[i] for j in order if not is_junk[j]]
        ranks = np.flatnonzero(hits) + 1
        precisions.append(np.mean([(n + 1) / rank for n, rank in enumerate(ranks)]) if len(ranks) else np.nan)
    found = retrieval_metrics.evaluate(both, both)
    assert found.average_precision == pytest.approx(precisions, abs=GOLDEN_VALUE, nan_ok=True)
    assert retrieval_metrics.applied_rule(rule, camera) == (rule if cameras else "none")


def test_groups_of_cameras_and_scenes_are_their_numbers():
    camera, scene = np.array([2, 0, 2]), np.array([5, 5, 7])
    assert retrieval_metrics.junk_groups("camera", camera, scene).tolist() == [2, 0, 2]
    assert retrieval_metrics.junk_groups("scene", camera, scene).tolist() == [5, 5, 7]
    assert retrieval_metrics.applied_rule("scene", np.full(3, -1)) == "scene"
