"""How soon one query finds its nearest samples among 200,000 in a kept index."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.benchmarks.measuring import BenchmarkReport, measure_in_turns
from experiments.evaluating.parquet_files import embedding_parts, write_parquet
from experiments.searching.kept_gallery import EMBEDDINGS_FILE, GalleryRecord, KeptGallery

SAMPLES = 200_000
WIDTH = 1536
TOP = 20


def search(repeats: int) -> BenchmarkReport:
    """The index opened again for each query, as `search.py` does, and kept open."""
    random = np.random.default_rng(0)
    query = random.standard_normal((1, WIDTH), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        kept = _random_gallery(Path(folder))
        kept.open_index("U")

        def opened() -> Callable[[], object]:
            return lambda: kept.search(kept.open_index("U"), query, TOP)

        def kept_open() -> Callable[[], object]:
            index = kept.open_index("U")
            return lambda: kept.search(index, query, TOP)

        results = measure_in_turns({"opened and searched": opened, "searched": kept_open}, repeats, 1)
    settings = {"samples": SAMPLES, "width": WIDTH, "top": TOP}
    return BenchmarkReport(name="search", settings=settings, results=tuple(results))


def _random_gallery(folder: Path) -> KeptGallery:
    random = np.random.default_rng(1)
    values = random.standard_normal((SAMPLES, WIDTH), dtype=np.float32)
    labels = {"sample_id": np.arange(SAMPLES).astype(np.str_)}
    write_parquet(str(folder / EMBEDDINGS_FILE), embedding_parts(labels, {"U": values}))
    record = GalleryRecord(model="", gallery="", location="", samples=SAMPLES, left_out={})
    return KeptGallery(folder, record, embedded=0)
