"""Speed and memory of the parts that a run spends its time in.

    python experiments/benchmark.py train-step --json
    python experiments/benchmark.py all --repeats 5

Machines differ and are noisy: compare the ratios, which are taken inside one run, not the seconds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import open_clip
import pyarrow as pa
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data_catalog.building import ShardMaker, build_table
from data_catalog.schemas import TableKind, view_schema
from data_catalog.view import ViewSettings, open_view
from experiments.command_line import run_command
from stmi import augment, retrieval
from stmi.clip import LoadedClip
from stmi.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig
from stmi.model import STMI, ModelInput
from stmi.retrieval import RetrievalSet
from stmi.train_step import TrainStep

SIZE = (256, 128)
THREADS = 2


def measure(variant: str, work: Callable[[], Any], repeats: int, samples: int = 0) -> dict[str, Any]:
    """Time some work after one warm-up: median, spread, throughput, and the most memory held meanwhile."""
    work()
    _forget_peak_memory()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    result: dict[str, Any] = {
        "variant": variant,
        "median_seconds": median,
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "peak_memory_bytes": _peak_memory(),
    }
    return result | ({"samples_per_second": samples / median} if samples else {})


def _compare(result: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    ratio = result["median_seconds"] / base["median_seconds"]
    return result | {"ratio": ratio, "ratio_to": base["variant"]}


def _forget_peak_memory() -> None:
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def _peak_memory() -> int | None:
    """Most resident memory since it was last forgotten, bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class _MatrixProducts(TorchDispatchMode):
    """Records the operand shapes of every matrix product, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.shapes.append((tuple(args[0].shape), tuple(args[1].shape)))
        elif name in ("addmm", "baddbmm"):
            self.shapes.append((tuple(args[1].shape), tuple(args[2].shape)))
        return func(*args, **(kwargs or {}))


def train_step(repeats: int) -> dict[str, Any]:
    """A whole optimisation step at the published size, against the time of its matrix products alone."""
    samples = 8
    config = ModelConfig()
    random = torch.Generator().manual_seed(0)
    tower = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)
    model = STMI(config, LoadedClip(tower, None, "random ViT-B-16", ""), identities=171, cameras=4, seed=0)
    del tower
    step = TrainStep(model.train(), LossConfig(), OptimConfig(), autocast=True)
    batch = ModelInput(
        torch.randn(samples, 3, 3, *SIZE, generator=random),
        torch.rand(samples, model.grid[0] * model.grid[1], generator=random),
        torch.randn(samples, 512, generator=random),
        torch.arange(samples) % 4,
    )
    labels = torch.arange(samples) // 4
    noise = model.noise(0, 0, 0, samples, slice(0, samples))
    with _MatrixProducts() as products:
        step(batch, noise, labels, 1e-6)
    shapes = {pair: products.shapes.count(pair) for pair in products.shapes}
    operands = [
        (torch.randn(a).bfloat16(), torch.randn(b).bfloat16(), times) for (a, b), times in shapes.items()
    ]

    def multiply() -> None:
        for a, b, times in operands:
            for _ in range(times):
                a @ b

    floor = measure("matrix products alone, bfloat16", multiply, repeats, samples)
    eager = measure("eager step, bfloat16", lambda: step(batch, noise, labels, 1e-6), repeats, samples)
    settings = {
        "model": "ViT-B/16",
        "image": SIZE,
        "samples": samples,
        "matrix_products": len(products.shapes),
    }
    return _report("train-step", settings, [floor, _compare(eager, floor)])


def augmentation(repeats: int) -> dict[str, Any]:
    """From uint8 to the model's input: flip, padded crop, erasing, normalisation."""
    samples, config = 72, AugmentConfig()
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (samples, 3, 3, *SIZE), dtype=np.uint8))
    mask = torch.from_numpy(random.integers(0, 256, (samples, *SIZE), dtype=np.uint8))

    def work() -> None:
        geometry = augment.draw_geometry(config, samples, SIZE, 0, 0, 0)
        _, moved = augment.augment(pixels, mask, geometry, config.crop_padding, slice(0, samples), (0, 0, 0))
        augment.patch_foreground(moved, 16)

    normalise = measure("normalisation alone", lambda: augment.normalise(pixels), repeats, samples)
    whole = measure("augmentation", work, repeats, samples)
    return _report("augment", {"image": SIZE, "samples": samples}, [normalise, _compare(whole, normalise)])


def retrieve(repeats: int) -> dict[str, Any]:
    """MAP and CMC at RGBNT100's size, against sorting the whole distance matrix in numpy."""
    random = np.random.default_rng(0)

    def draw(count: int) -> RetrievalSet:
        embedding = random.normal(size=(count, 1536)).astype(np.float32)
        return RetrievalSet(embedding, random.integers(0, 50, count), random.integers(0, 8, count))

    query, gallery = draw(1715), draw(8575)

    def whole_matrix() -> None:
        a, b = retrieval.normalise(query.embedding), retrieval.normalise(gallery.embedding)
        np.argsort(2 - 2 * a @ b.T, axis=1)

    sort = measure("whole-matrix argsort alone", whole_matrix, repeats, len(query))
    chunked = measure("evaluate", lambda: retrieval.evaluate(query, gallery), repeats, len(query))
    settings = {"queries": len(query), "gallery": len(gallery), "width": 1536}
    return _report("retrieval", settings, [sort, _compare(chunked, sort)])


def view_read(repeats: int) -> dict[str, Any]:
    """Random rows of a memory-mapped view at the published size, against copying as many bytes."""
    rows, samples = 400, 72
    random = np.random.default_rng(0)
    settings = ViewSettings(split="train", height=SIZE[0], width=SIZE[1], text_dim=512)
    with tempfile.TemporaryDirectory() as folder:
        table = build_table(
            catalog=folder,
            dataset="random",
            kind=TableKind.VIEW,
            settings=settings.model_dump(),
            inputs={},
            work=[{"rows": rows}],
            maker=_RandomRows(),
            summarise=lambda shards: {},
        )
        view = open_view(table)
        numbers = random.permutation(rows)[:samples]
        block = random.integers(0, 256, (samples, 10 * SIZE[0] * SIZE[1]), dtype=np.uint8)
        copy = measure("copy of as many bytes", block.copy, repeats, samples)
        read = measure("view.batch", lambda: view.batch(numbers), repeats, samples)
    return _report(
        "view-read", {"image": SIZE, "rows": rows, "samples": samples}, [copy, _compare(read, copy)]
    )


class _RandomRows(ShardMaker):
    """Fills a view with random pixels."""

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        rows, random = work["rows"], np.random.default_rng(0)
        columns = [
            pa.array(self._values(field.type, rows, random), field.type) for field in view_schema(*SIZE, 512)
        ]
        return pa.table(columns, schema=view_schema(*SIZE, 512)), {}

    @staticmethod
    def _values(kind: pa.DataType, rows: int, random: np.random.Generator) -> list[Any]:
        if pa.types.is_fixed_size_binary(kind):
            return [random.bytes(kind.byte_width) for _ in range(rows)]
        if pa.types.is_fixed_size_list(kind):
            return random.random((rows, kind.list_size), dtype=np.float32).tolist()
        if pa.types.is_string(kind):
            return [str(row) for row in range(rows)]
        return [True] * rows if pa.types.is_boolean(kind) else [0] * rows


def _report(name: str, settings: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "settings": settings | {"threads": THREADS}, "results": results}


BENCHMARKS = {
    "train-step": train_step,
    "augment": augmentation,
    "retrieval": retrieve,
    "view-read": view_read,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*BENCHMARKS, "all"], help="what to measure")
    parser.add_argument(
        "--repeats", type=int, default=5, help="runs that count, after one warm-up (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    if given.repeats < 1:
        parser.error(f"--repeats={given.repeats}: at least 1 is needed")
    names = list(BENCHMARKS) if given.name == "all" else [given.name]

    def work() -> dict[str, Any]:
        torch.set_num_threads(THREADS)
        reports = [BENCHMARKS[name](given.repeats) for name in names]
        return {"name": "all", "benchmarks": reports} if given.name == "all" else reports[0]

    return run_command(work, given.json, _print)


def _print(report: dict[str, Any]) -> None:
    for part in report.get("benchmarks", []):
        _print(part)
    if "results" not in report:
        return
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    print(f"{report['name']} ({settings})")
    for result in report["results"]:
        ratio = f"  {result['ratio']:.2f} x {result['ratio_to']}" if "ratio" in result else ""
        memory = f"  {result['peak_memory_bytes'] / 1e9:.2f} GB" if result["peak_memory_bytes"] else ""
        print(
            f"  {result['variant']:34} {result['median_seconds']:.4f} s "
            f"({result['fastest_seconds']:.4f} to {result['slowest_seconds']:.4f})"
            f"  {result['samples_per_second']:.0f} samples/s{memory}{ratio}"
        )


if __name__ == "__main__":
    sys.exit(main())
