"""How fast a data set in RGBNT100's format is ingested and its view built, and how much memory that takes.

The files are drawn anew, of the published size and layout; then the steps of the catalog run as they do for a
lab, in a temporary folder. Ray and its first workers are started before, so their start is not measured.
"""

import gc
import io
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil
from PIL import Image

if TYPE_CHECKING:
    from data_catalog.tables.table import Table

SAMPLES, TRAINING_SAMPLES = 17_250, 8_675
"""RGBNT100's."""
SIZE = (128, 256)
"""Height and width of one of the three images that stand side by side in a file."""

_SAMPLES_OF_IDENTITY, _CAMERAS, _GALLERY_SAMPLES_PER_QUERY = 100, 8, 5
_PICTURES = 64
_SECONDS_BETWEEN_LOOKS = 0.1


def ingest_images(repeats: int, samples: int = SAMPLES) -> dict[str, Any]:
    """A data set and one of twice its size, and the ratio of their peaks: memory must not grow with it.

    The peak is that of this process and all of Ray's together, pages that they share counted once;
    `memory_before_bytes` is what they held before.
    """
    from data_catalog.samples.ingestion import IngestSettings, ingest  # noqa: PLC0415 - its memory is not the others'

    _start_ray()
    results = []
    for count in (samples, 2 * samples):
        with tempfile.TemporaryDirectory() as place:
            source, catalog = _write_source(Path(place), count), Path(place) / "catalog"

            def work() -> "Table":
                return ingest(source, catalog, "rgbnt100", IngestSettings(format="rgbnt100"))  # noqa: B023

            results.append(_measure(f"ingest, {count} samples", work, repeats, count))
    single, double = results
    ratio = double["peak_memory_bytes"] / single["peak_memory_bytes"]
    double |= {"ratio": ratio, "ratio_to": f"peak memory of {samples} samples"}
    return _report("ingest", samples, results)


def build_view(repeats: int, samples: int = TRAINING_SAMPLES) -> dict[str, Any]:
    """The view of a training part of so many samples, with masks; memory as for `ingest_images`."""
    from data_catalog.masks.segmenters.mask_files import import_masks  # noqa: PLC0415
    from data_catalog.samples.ingestion import IngestSettings, ingest  # noqa: PLC0415 - its memory is not the others'
    from data_catalog.views.training_view import ViewSettings, make_view  # noqa: PLC0415

    _start_ray()
    with tempfile.TemporaryDirectory() as place:
        source = _write_source(Path(place), 2 * samples)
        table = ingest(source, Path(place) / "catalog", "rgbnt100", IngestSettings(format="rgbnt100"))
        masks = import_masks(table)
        settings = ViewSettings(split="train", height=SIZE[0], width=SIZE[1])

        def work() -> "Table":
            return make_view(table, masks, None, settings)

        result = _measure(f"view, {samples} samples", work, repeats, samples)
    return _report("view-build", samples, [result])


def _start_ray() -> None:
    from data_catalog.ray_session import ensure_ray  # noqa: PLC0415 - its memory is not the others'

    # Here and nowhere else, whatever cluster the shell may name.
    os.environ["RAY_ADDRESS"] = "local"
    ensure_ray()


def _write_source(place: Path, samples: int) -> Path:
    """Half of the samples to train on, half as gallery, a fifth of these as queries; masks of all."""
    root = place / "RGBNT100"
    random = np.random.default_rng(0)
    pictures = [_picture(random) for _ in range(_PICTURES)]
    mask = io.BytesIO()
    pixels = np.zeros(SIZE, dtype=np.uint8)
    pixels[SIZE[0] // 4 : -SIZE[0] // 4, SIZE[1] // 4 : -SIZE[1] // 4] = 255
    Image.fromarray(pixels).save(mask, format="PNG")
    for part, first_identity in (("bounding_box_train", 1), ("bounding_box_test", 5001)):
        for folder in (f"rgbir/{part}", "rgbir/query", f"mask/{part}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(samples // 2):
            identity = first_identity + number // _SAMPLES_OF_IDENTITY
            name = f"{identity:04d}_c{number % _CAMERAS + 1:04d}_{number:06d}"
            picture = pictures[number % _PICTURES]
            (root / f"rgbir/{part}/{name}.jpg").write_bytes(picture)
            (root / f"mask/{part}/{name}.png").write_bytes(mask.getvalue())
            if part == "bounding_box_test" and number % _GALLERY_SAMPLES_PER_QUERY == 0:
                (root / f"rgbir/query/{name}.jpg").write_bytes(picture)
    return root


def _picture(random: np.random.Generator) -> bytes:
    """Soft shapes under noise, three images side by side: some 40 kB, as a photograph has."""
    height, width = SIZE[0], 3 * SIZE[1]
    shapes = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    pixels = pixels + random.normal(0, 6, pixels.shape)
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, format="JPEG", quality=90)
    return sink.getvalue()


def _measure(variant: str, work: Callable[[], "Table"], repeats: int, samples: int) -> dict[str, Any]:
    """Time work that makes a table, which is deleted again; once more before, to start the workers."""
    shutil.rmtree(work().path)
    gc.collect()
    before, seconds, peaks = _memory(), [], []
    for _ in range(repeats):
        with _PeakMemory() as memory:
            start = time.perf_counter()
            table = work()
            seconds.append(time.perf_counter() - start)
        peaks.append(memory.peak)
        shutil.rmtree(table.path)
    median = statistics.median(seconds)
    return {
        "variant": variant,
        "median_seconds": median,
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "peak_memory_bytes": max(peaks),
        "memory_before_bytes": before,
        "samples_per_second": samples / median,
    }


def _memory() -> int:
    """Memory of this process and all that it started, bytes, pages that they share counted once."""
    process, held = psutil.Process(), 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            full = one.memory_full_info()
            # Not every system tells the proportional share.
            held += getattr(full, "pss", full.rss)
    return held


class _PeakMemory:
    """Watches memory from a thread for as long as the block lasts; `peak` is the most that it saw, bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, _memory())
            if self._done.wait(_SECONDS_BETWEEN_LOOKS):
                return


def _report(name: str, samples: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    settings = {"format": "rgbnt100", "image": SIZE, "samples": samples, "processors": os.cpu_count()}
    return {"name": name, "settings": settings, "results": results}
