"""The step of several workers on hosts of their own, beside its two parts: to compute, and to exchange."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import psutil

from experiments.benchmarks.measuring import BenchmarkReport, Measurement
from experiments.benchmarks.shaped_network import address, shaped_network
from experiments.experiment_config import ConfigError
from experiments.recipes import ROOT, resolve
from stmi.processors import usable_processors

RATE = "1gbit"
SAMPLES = 4
"""Samples of a step on each worker: the least with which one alone has a triplet loss."""
WORKER_BYTES = 2.5e9
"""What a worker needs for weights, gradients, the optimiser's state and activations."""
PORT = 29500
"""Free on every host: it has its network for itself."""
Seconds = dict[str, list[float]]


def data_parallel(repeats: int) -> BenchmarkReport:
    """Steps at the published size of one, two and four workers with a thread each.

    With a link of 1 Gbit/s, `overlap` of a step is its time over that of the longer of its parts, its own
    computation and the exchange of its gradients. Gathering the features, and the norm of all
    gradients, are parts of a step too; their `ratio` is the share of the step that they take. Without a
    limit, `times_faster` is how many times as many samples a second two workers train as one. Where there
    are fewer processors than workers, these share them, and computing takes longer for all.

    Raises:
        ConfigError: There are no such hosts here, or too little memory.
    """
    free = psutil.virtual_memory().available
    if free < 4 * WORKER_BYTES:
        raise ConfigError(
            f"four workers need {4 * WORKER_BYTES / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free; end other "
            "programs, or leave this benchmark out"
        )
    results: list[Measurement] = []
    for workers in (2, 4):
        seconds = _measure(workers, RATE, repeats)
        compute, exchange = (
            _measurement(f"{part} alone, {workers} workers", seconds[part], 0)
            for part in ("compute", "exchange")
        )
        longer = max(compute, exchange, key=lambda part: part.median_seconds)
        step = _measurement(f"step, {workers} workers, {RATE}", seconds["step"], workers)
        step = step.compared_with(longer)
        results += [compute, exchange, step.model_copy(update={"overlap": step.ratio})]
        for part in ("gathers", "norm of the gradients"):
            measured = _measurement(f"{part}, {workers} workers, {RATE}", seconds[part], 0)
            results.append(measured.compared_with(step))
    one = _measurement("step, 1 worker", _measure(1, None, repeats)["step"], 1)
    two = _measurement("step, 2 workers, no limit", _measure(2, None, repeats)["step"], 2).compared_with(one)
    faster = 2 * one.median_seconds / two.median_seconds
    results += [one, two.model_copy(update={"times_faster": faster})]
    settings = {
        "model": "ViT-B/16",
        "samples_of_a_worker": SAMPLES,
        "threads_of_a_worker": 1,
        "link": RATE,
        "processors": usable_processors(),
    }
    return BenchmarkReport(name="data-parallel", settings=settings, results=tuple(results))


def _measurement(variant: str, seconds: list[float], workers: int) -> Measurement:
    median = statistics.median(seconds)
    return Measurement(
        variant=variant,
        median_seconds=median,
        fastest_seconds=min(seconds),
        slowest_seconds=max(seconds),
        peak_memory_bytes=None,
        samples_per_second=workers * SAMPLES / median if workers else None,
    )


def _measure(workers: int, rate: str | None, repeats: int) -> Seconds:
    """Seconds of each part, on the first of some workers."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    with shaped_network(workers, rate) as hosts:
        processes = [
            subprocess.Popen(
                [*host, sys.executable, "-m", __name__, *map(str, (rank, workers, repeats))],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, host in enumerate(hosts)
        ]
        printed = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        if process.returncode:
            raise RuntimeError(f"a worker ended with {process.returncode}: {errors}")
    return json.loads(printed[0][0])


def _work(rank: int, workers: int, repeats: int) -> Seconds:
    """What each worker does."""
    import torch  # noqa: PLC0415 - not in the process that measures
    import torch.distributed as dist  # noqa: PLC0415
    from torch.nn.parallel import DistributedDataParallel  # noqa: PLC0415

    from experiments.planning.dry_run import DryRun, untrained_clip  # noqa: PLC0415
    from stmi.model import STMI  # noqa: PLC0415
    from stmi.training.train_step import BUCKET_MEBIBYTES, gather_rows  # noqa: PLC0415

    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", f"tcp://{address(0)}:{PORT}", rank=rank, world_size=workers)
    batch = [f"batch.size={SAMPLES * workers}", "batch.samples_per_identity=2"]
    config = resolve("rgbnt201-paper", [*batch, f"train.workers={workers}", "train.precision=float32"])
    clip = untrained_clip(config)
    model = STMI(config.model, clip, identities=171, cameras=4, seed=0)
    run = DryRun(config, model, clip.model.context_length)
    module, loss = run.take_step.module, run.take_step.global_loss
    bytes_of_all = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    bucket = BUCKET_MEBIBYTES * 2**20
    buckets = [torch.zeros(bucket // 4) for _ in range(-(-bytes_of_all // bucket))]

    def exchange() -> None:
        for sending in [dist.all_reduce(each, async_op=True) for each in buckets]:
            sending.wait()

    def compute() -> None:
        with module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext():
            run.train()

    batch_input, draws, labels = run.batch(0)
    with torch.no_grad():
        rows = {name: torch.randn_like(values) for name, values in loss(batch_input, draws).items()}

    def gathers() -> None:
        for values in (*rows.values(), labels):
            gather_rows(values)

    def norm() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)

    parts: dict[str, Callable[[], None]] = {"step": run.train}
    if workers > 1:
        # The norm is that of the gradients that the step has left.
        parts |= {"norm of the gradients": norm, "gathers": gathers, "compute": compute, "exchange": exchange}
    seconds: Seconds = {part: [] for part in parts}
    for repeat in range(repeats + 1):
        for part, function in parts.items():
            if workers > 1:
                dist.barrier()
            began = time.perf_counter()
            function()
            if repeat:
                seconds[part].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    print(json.dumps(_work(*map(int, sys.argv[1:]))))
