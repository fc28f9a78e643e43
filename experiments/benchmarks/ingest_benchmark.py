"""How fast a data set in RGBNT100's format is ingested and its view built, and how much memory that takes.

The image files are generated, with the published size and layout; then the steps of the catalog run as usual,
in a temporary folder. Ray and its first workers are started before, so their start is not measured.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.ray_session import ensure_ray
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from data_catalog.views.training_view import ViewSettings, make_view
from experiments.benchmarks.measuring import BenchmarkReport, Measurement, family_memory, measure
from stmi.processors import usable_processors

SAMPLES, TRAINING_SAMPLES = 17_250, 8_675
"""Of RGBNT100."""
SIZE = (128, 256)
"""Height and width of one of the three images that are side by side in a file."""

_SAMPLES_PER_IDENTITY, _CAMERAS, _GALLERY_SAMPLES_PER_QUERY = 100, 8, 5
_DIFFERENT_IMAGES = 64


def ingest_images(repeats: int, samples: int = SAMPLES) -> BenchmarkReport:
    """A data set and one of twice its size, and the ratio of their peaks: memory must not grow with the size.

    The peak is that of this process and all of Ray's processes together.
    """
    _start_ray()
    results = []
    for count in (samples, 2 * samples):
        with tempfile.TemporaryDirectory() as folder:
            source, catalog = _write_source(Path(folder), count), Path(folder) / "catalog"

            def run() -> Table:
                return ingest(source, catalog, "rgbnt100", IngestSettings(format="rgbnt100"))  # noqa: B023

            results.append(_measure(f"ingest, {count} samples", run, repeats, count))
    single, double = results
    assert single.peak_memory_bytes is not None
    assert double.peak_memory_bytes is not None
    ratio = double.peak_memory_bytes / single.peak_memory_bytes
    compared = double.model_copy(update={"ratio": ratio, "ratio_to": f"peak memory of {samples} samples"})
    return _report("ingest", samples, single, compared)


def build_view(repeats: int, samples: int = TRAINING_SAMPLES) -> BenchmarkReport:
    """The view of a training split with so many samples, with masks; memory as in `ingest_images`."""
    _start_ray()
    with tempfile.TemporaryDirectory() as folder:
        source = _write_source(Path(folder), 2 * samples)
        table = ingest(source, Path(folder) / "catalog", "rgbnt100", IngestSettings(format="rgbnt100"))
        masks = import_masks(table)
        settings = ViewSettings(split="train", height=SIZE[0], width=SIZE[1])
        result = _measure(
            f"view, {samples} samples", lambda: make_view(table, masks, None, settings), repeats, samples
        )
    return _report("view-build", samples, result)


def _start_ray() -> None:
    # On this machine, whatever cluster the shell names.
    os.environ["RAY_ADDRESS"] = "local"
    ensure_ray()


def _write_source(folder: Path, samples: int) -> Path:
    """Half of the samples are for training, half are gallery, and a fifth of these queries; with masks."""
    root = folder / "RGBNT100"
    random = np.random.default_rng(0)
    images = [_render_image(random) for _ in range(_DIFFERENT_IMAGES)]
    mask = io.BytesIO()
    pixels = np.zeros(SIZE, dtype=np.uint8)
    pixels[SIZE[0] // 4 : -SIZE[0] // 4, SIZE[1] // 4 : -SIZE[1] // 4] = 255
    Image.fromarray(pixels).save(mask, format="PNG")
    for part, first_identity in (("bounding_box_train", 1), ("bounding_box_test", 5001)):
        for name in (f"rgbir/{part}", "rgbir/query", f"mask/{part}"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(samples // 2):
            identity = first_identity + number // _SAMPLES_PER_IDENTITY
            name = f"{identity:04d}_c{number % _CAMERAS + 1:04d}_{number:06d}"
            image = images[number % _DIFFERENT_IMAGES]
            (root / f"rgbir/{part}/{name}.jpg").write_bytes(image)
            (root / f"mask/{part}/{name}.png").write_bytes(mask.getvalue())
            if part == "bounding_box_test" and number % _GALLERY_SAMPLES_PER_QUERY == 0:
                (root / f"rgbir/query/{name}.jpg").write_bytes(image)
    return root


def _render_image(random: np.random.Generator) -> bytes:
    """Soft shapes under noise, three images side by side: about 40 kB, like a photograph."""
    height, width = SIZE[0], 3 * SIZE[1]
    shapes = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    pixels = pixels + random.normal(0, 6, pixels.shape)
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, format="JPEG", quality=90)
    return sink.getvalue()


def _measure(variant: str, function: Callable[[], Table], repeats: int, samples: int) -> Measurement:
    """Measure a function that makes a table, which is deleted again."""

    def delete(table: Table) -> None:
        shutil.rmtree(table.path)

    return measure(variant, function, repeats, samples, clean_up=delete, memory=family_memory)


def _report(name: str, samples: int, *results: Measurement) -> BenchmarkReport:
    settings = {"format": "rgbnt100", "image": SIZE, "samples": samples, "processors": usable_processors()}
    return BenchmarkReport(name=name, settings=settings, results=results)
