"""How fast mAP and CMC are computed, at RGBNT100's size and at 200,000 gallery samples."""

import numpy as np
import torch

from experiments.benchmarks.measuring import BenchmarkReport, measure
from stmi.retrieval.metrics import RetrievalSet, evaluate

WIDTH = 1536


def retrieve(repeats: int) -> BenchmarkReport:
    """MAP and CMC at RGBNT100's size, against the field's usual form: the whole distance matrix, argsort."""
    query, gallery = _random_set(1715, 0), _random_set(8575, 1)
    usual = measure("whole-matrix argsort", lambda: _by_whole_matrix(query, gallery), repeats, len(query))
    chunked = measure("evaluate", lambda: evaluate(query, gallery), repeats, len(query))
    results = (usual, chunked.compared_with(usual))
    return BenchmarkReport(name="retrieval", settings=_settings(query, gallery), results=results)


def retrieve_large(repeats: int) -> BenchmarkReport:
    """20,000 queries among 200,000, in chunks; the first 200 queries against the whole-matrix form.

    `repeats` is not used: a run takes minutes.
    """
    query, gallery = _random_set(20_000, 0), _random_set(200_000, 1)
    few = RetrievalSet(query.embedding[:200], query.identity[:200], query.group[:200])
    large = measure("evaluate", lambda: evaluate(query, gallery), 1, len(query), warm_up=False)
    difference = abs(evaluate(few, gallery).mean_average_precision - _by_whole_matrix(few, gallery))
    settings = _settings(query, gallery) | {"difference_of_mAP_on_200": difference}
    return BenchmarkReport(name="retrieval-large", settings=settings, results=(large,))


def _settings(query: RetrievalSet, gallery: RetrievalSet) -> dict[str, int | float]:
    threads = torch.get_num_threads()
    return {"queries": len(query), "gallery": len(gallery), "width": WIDTH, "threads": threads}


def _random_set(count: int, seed: int) -> RetrievalSet:
    random = np.random.default_rng(seed)
    embedding = random.standard_normal((count, WIDTH), dtype=np.float32)
    return RetrievalSet(embedding, random.integers(0, 50, count), random.integers(0, 8, count))


def _by_whole_matrix(query: RetrievalSet, gallery: RetrievalSet) -> float:
    a, b = (x.embedding / np.linalg.norm(x.embedding, axis=1, keepdims=True) for x in (query, gallery))
    order = np.argsort(2 - 2 * a @ b.T, axis=1)
    matches = gallery.identity[order] == query.identity[:, None]
    precisions = []
    for i in range(len(query)):
        keep = ~(matches[i] & (gallery.group[order[i]] == query.group[i]))
        hits = matches[i][keep].astype(np.int32)
        found = hits.cumsum()
        precisions.append(float((found / np.arange(1, len(found) + 1) * hits).sum() / hits.sum()))
    return float(np.mean(precisions))
