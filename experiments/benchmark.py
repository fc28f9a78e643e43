"""Speed and memory of the parts that a run spends its time in.

    python experiments/benchmark.py train-step --json
    python experiments/benchmark.py all --repeats 5

Products are of bfloat16, as recipes train, where the processor has instructions for it, and else of float32.

Machines differ and are noisy: compare the ratios, which are taken inside one run, not the seconds.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import open_clip
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.ingest_benchmark import build_view, ingest_images
from experiments.benchmarks.measuring import compare, measure, measure_in_turns
from experiments.benchmarks.sweep_benchmark import sweep
from stmi.clip.loading import LoadedClip
from stmi.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig
from stmi.feature_modulation import modulated_attention
from stmi.kernels import forms
from stmi.kernels.capabilities import cpu_multiplies_bfloat16
from stmi.kernels.host_memory import keep_freed_memory
from stmi.model import STMI
from stmi.model_input import ModelInput
from stmi.retrieval import metrics as retrieval_metrics
from stmi.retrieval.metrics import RetrievalSet
from stmi.training import augment
from stmi.training.train_step import TrainStep, build_optimizer

SIZE = (256, 128)
HEADS, HEAD_WIDTH = 12, 64
"""Of ViT-B/16, as `SIZE` of its published images."""
THREADS = 2
PRECISION = torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
DTYPE = str(PRECISION).removeprefix("torch.")


_PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""PyTorch's matrix products, and which of their arguments is the left operand."""


def _products_of(
    work: Callable[[], Any], left_out: tuple[tuple[int, int], tuple[int, int]] | None = None
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Operand shapes of every matrix product of some work, in order.

    Sums are no products of the work (ones on the left), nor are those whose operands are matrices of two
    shapes that are to be `left_out`.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        work()
    events = sorted(recorded.events(), key=lambda event: event.time_range.start)
    products = []
    for event in events:
        if event.name in _PRODUCTS:
            left, right = event.input_shapes[_PRODUCTS[event.name] :][:2]
            products.append((tuple(left), tuple(right)))
    return [(left, right) for left, right in products if left[-2] > 1 and (left[-2:], right[-2:]) != left_out]


def train_step(repeats: int) -> dict[str, Any]:
    """A whole optimisation step at the published size, against the time of its matrix products alone."""
    samples = 8
    model = _published_model()
    shapes = ((samples, 3, 3, *SIZE), (samples, model.grid[0] * model.grid[1]), (samples, 512))
    images, foreground, text = _randoms(*shapes)
    batch = ModelInput(images, foreground, text, torch.arange(samples) % 4)
    labels = torch.arange(samples) // 4
    draws = model.random_draws(0, 0, 0, samples, slice(0, samples))

    # The optimiser's state is kept once for both, or that of the other would count as memory of a step.
    optimizer = build_optimizer(model, OptimConfig())

    def step(compiled: bool) -> Callable[[], Any]:
        take_step = TrainStep(
            model, LossConfig(), OptimConfig(), autocast=torch.bfloat16 == PRECISION, compiled=compiled
        )
        take_step.optimizer = optimizer
        return lambda: take_step(batch, draws, labels, 1e-6)

    def floor() -> Callable[[], Any]:
        # The step could do without what the modulated attention multiplies for alpha and beta alone: the
        # gradient of its logits with the keys, those of the foreground and the marks side by side.
        tokens, width = 1 + model.grid[0] * model.grid[1], HEAD_WIDTH
        for_strength = (tokens, tokens), (tokens, 2 * width + 1)
        products = _products_of(step(compiled=False), for_strength)
        settings["matrix_products"] = len(products)
        return _multiplication(products)

    settings = {"model": "ViT-B/16", "image": SIZE, "samples": samples, "dtype": DTYPE}
    names = f"eager step, {DTYPE}", f"compiled step, {DTYPE}", f"matrix products alone, {DTYPE}"
    # The floor comes last: its operands are no memory of a step.
    works = dict(zip(names, (lambda: step(compiled=False), lambda: step(compiled=True), floor), strict=True))
    eager, compiled, alone = measure_in_turns(works, repeats, samples)
    return _report("train-step", settings, [alone, compare(eager, alone), compare(compiled, alone)])


def _published_model() -> STMI:
    tower = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)
    clip = LoadedClip(tower, None, "random ViT-B-16", "")
    return STMI(ModelConfig(), clip, identities=171, cameras=4, seed=0).train()


def _randoms(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator).to(dtype) for shape in shapes]


def _multiplication(products: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> Callable[[], None]:
    # In the step's order, each product with operands of its own, as in the step: nothing is in a cache that
    # would not be there.
    operands = [_randoms(*pair, dtype=PRECISION) for pair in products]

    def multiply() -> None:
        for a, b in operands:
            a @ b

    return multiply


def attention(repeats: int) -> dict[str, Any]:
    """The modulated attention, forward and backward, against PyTorch's plain one, at three image sizes.

    Once with its own backward pass, as it runs by default, and once compiled, as with `train.compile`. Memory
    is what the forward pass keeps for the backward pass, in `kept_bytes`, and `kept_ratio` to the plain one.
    """

    def attend(projected: torch.Tensor, *others: Any) -> torch.Tensor:
        form = forms.choose(forms.MODULATED_ATTENTION, modulated_attention, projected)
        return form(projected, *others)

    results = []
    fused = torch.compile(attend, fullgraph=True, dynamic=False)
    for tokens, images in ((129, 24), (513, 6), (1025, 3)):
        # As a layer projects them: SDPA takes views of it, so neither pays for a layout of its own.
        projected, gradient = _randoms(
            (images, tokens, 3, HEADS, HEAD_WIDTH), (images, tokens, HEADS, HEAD_WIDTH), dtype=PRECISION
        )
        projected.requires_grad_()
        foreground = _randoms((images, tokens))[0] < 0.4
        alpha, beta = (torch.full((1, 1, 1), 0.1, requires_grad=True) for _ in range(2))

        def plain() -> torch.Tensor:
            query, key, value = projected.permute(2, 0, 3, 1, 4)  # noqa: B023
            return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

        def modulated() -> torch.Tensor:
            return attend(projected, foreground, alpha, beta, 1 / 8)  # noqa: B023

        def compiled() -> torch.Tensor:
            return fused(projected, foreground, alpha, beta, 1 / 8)  # noqa: B023

        attentions = {
            f"plain attention, {tokens} tokens": plain,
            f"modulated attention, {tokens} tokens": modulated,
            f"modulated attention, compiled, {tokens} tokens": compiled,
        }

        def training(attend: Callable[[], torch.Tensor]) -> Callable[[], Any]:
            return lambda: attend().backward(gradient)  # noqa: B023

        works = {name: partial(training, attend) for name, attend in attentions.items()}
        base, *others = measure_in_turns(works, repeats, images)
        for result in (base, *others):
            result["kept_bytes"] = _kept(attentions[result["variant"]])
        for other in others:
            other["kept_ratio"] = other["kept_bytes"] / base["kept_bytes"]
        results += [base, *(compare(other, base) for other in others)]
    return _report("attention", {"heads": HEADS, "head_width": HEAD_WIDTH, "dtype": DTYPE}, results)


def _kept(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        forward()
    return sum(kept.values())


def augmentation(repeats: int) -> dict[str, Any]:
    """From uint8 to the model's input: flip, padded crop, erasing, normalisation."""
    samples, config = 72, AugmentConfig()
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (samples, 3, 3, *SIZE), dtype=np.uint8))
    mask = torch.from_numpy(random.integers(0, 256, (samples, *SIZE), dtype=np.uint8))

    def work() -> None:
        geometry = augment.sample_geometry(config, samples, SIZE, 0, 0, 0)
        _, moved = augment.augment(pixels, mask, geometry, config.crop_padding, slice(0, samples), (0, 0, 0))
        augment.patch_foreground(moved, 16)

    normalise = measure("normalisation alone", lambda: augment.normalise(pixels), repeats, samples)
    whole = measure("augmentation", work, repeats, samples)
    return _report("augment", {"image": SIZE, "samples": samples}, [normalise, compare(whole, normalise)])


def retrieve(repeats: int) -> dict[str, Any]:
    """MAP and CMC at RGBNT100's size, against the field's usual form: the whole distance matrix, argsort."""
    query, gallery = _random_set(1715, 0), _random_set(8575, 1)
    usual = measure("whole-matrix argsort", lambda: _by_whole_matrix(query, gallery), repeats, len(query))
    chunked = measure("evaluate", lambda: retrieval_metrics.evaluate(query, gallery), repeats, len(query))
    settings = {"queries": len(query), "gallery": len(gallery), "width": 1536}
    return _report("retrieval", settings, [usual, compare(chunked, usual)])


def retrieve_large(repeats: int) -> dict[str, Any]:
    """20,000 queries among 200,000, in chunks; the first 200 queries against the whole-matrix form."""
    query, gallery = _random_set(20_000, 0), _random_set(200_000, 1)
    few = RetrievalSet(query.embedding[:200], query.identity[:200], query.group[:200])
    # `repeats` does not count here: a run takes minutes.
    large = measure(
        "evaluate", lambda: retrieval_metrics.evaluate(query, gallery), 1, len(query), warm_up=False
    )
    part, usual = retrieval_metrics.evaluate(few, gallery), _by_whole_matrix(few, gallery)
    settings = {
        "queries": len(query),
        "gallery": len(gallery),
        "width": 1536,
        "difference_of_mAP_on_200": abs(part.mean_average_precision - usual),
    }
    return _report("retrieval-large", settings, [large])


def _random_set(count: int, seed: int) -> RetrievalSet:
    random = np.random.default_rng(seed)
    embedding = random.standard_normal((count, 1536), dtype=np.float32)
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


def view_read(repeats: int) -> dict[str, Any]:
    """Random rows of a memory-mapped view at the published size, against copying as many bytes."""
    from data_catalog.tables.building import build_table  # noqa: PLC0415 - Ray's memory is not that of the others
    from data_catalog.tables.schemas import TableKind  # noqa: PLC0415
    from data_catalog.views.training_view import ViewSettings, open_view  # noqa: PLC0415
    from experiments.benchmarks.random_view import RandomRows  # noqa: PLC0415

    shards, rows, samples = 4, 500, 72
    random = np.random.default_rng(0)
    settings = ViewSettings(split="train", height=SIZE[0], width=SIZE[1], text_dim=512)
    with tempfile.TemporaryDirectory() as folder:
        table = build_table(
            catalog=folder,
            dataset="random",
            kind=TableKind.VIEW,
            settings=settings.model_dump(),
            inputs={},
            work=[{"rows": rows}] * shards,
            maker=RandomRows(SIZE),
            summarise=lambda shards: {},
        )
        view = open_view(table)
        block = random.integers(0, 256, (samples, 10 * SIZE[0] * SIZE[1]), dtype=np.uint8)
        copy = measure("copy of as many bytes", block.copy, repeats, samples)
        read = measure(
            "view.batch", lambda: view.batch(random.permutation(shards * rows)[:samples]), repeats, samples
        )
    return _report(
        "view-read", {"image": SIZE, "rows": shards * rows, "samples": samples}, [copy, compare(read, copy)]
    )


def _report(name: str, settings: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "settings": settings | {"threads": THREADS}, "results": results}


BENCHMARKS = {
    "train-step": train_step,
    "attention": attention,
    "augment": augmentation,
    "retrieval": retrieve,
    "view-read": view_read,
}
LONG_BENCHMARKS = {
    "retrieval-large": retrieve_large,
    "sweep": sweep,
    "ingest": ingest_images,
    "view-build": build_view,
}
"""Minutes each; not among `all`."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*BENCHMARKS, *LONG_BENCHMARKS, "all"], help="what to measure")
    parser.add_argument(
        "--repeats", type=int, default=5, help="runs that count, after one warm-up (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args(arguments)
    if given.repeats < 1:
        parser.error(f"--repeats={given.repeats}: at least 1 is needed")
    names = list(BENCHMARKS) if given.name == "all" else [given.name]

    torch.set_num_threads(THREADS)
    keep_freed_memory()
    # Not through `run_command`: it imports Ray, whose memory would count to what is measured.
    with contextlib.redirect_stdout(sys.stderr):
        reports = [(BENCHMARKS | LONG_BENCHMARKS)[name](given.repeats) for name in names]
    report = {"name": "all", "benchmarks": reports} if given.name == "all" else reports[0]
    if given.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


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
        rate = f"  {result['samples_per_second']:.0f} samples/s" if "samples_per_second" in result else ""
        outside = result.get("seconds_outside_training_per_trial")
        rate += f"  {outside:.2f} s a trial outside training" if outside is not None else ""
        memory += f"  keeps {result['kept_bytes'] / 1e6:.0f} MB" if "kept_bytes" in result else ""
        print(
            f"  {result['variant']:34} {result['median_seconds']:.4f} s "
            f"({result['fastest_seconds']:.4f} to {result['slowest_seconds']:.4f}){rate}{memory}{ratio}"
        )


if __name__ == "__main__":
    sys.exit(main())
