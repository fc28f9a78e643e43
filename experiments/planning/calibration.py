"""A few real training steps on the machine at hand, and how long the run takes if all are like them."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from experiments.planning.fresh_clip import fresh_clip
from experiments.planning.hardware import Work
from experiments.planning.rehearsal import Rehearsal
from experiments.recipes import ConfigError, ExperimentConfig
from experiments.run import run_data
from stmi.kernels.host_memory import keep_freed_memory
from stmi.model import STMI

STEPS = 5
"""Steps that count, after one to warm up (two where the network is compiled)."""
MOST_SECONDS = 60.0
"""No further step is begun after so long; one is always taken."""


def calibrate(config: ExperimentConfig, work: Work, identities: int, cameras: int) -> dict[str, Any]:
    """Time the run's own step on one worker's share, with fresh weights and random pixels.

    A worker has a GPU of its own where the machine has one; on processors it has its share of them, as in a
    run. Exchanging gradients, and what workers on one processor take from each other, are not measured: two
    workers of the demo took a fifth longer.

    Returns:
        `device`, `threads` (0 on a GPU), `samples` (of a step on this worker), `steps` (timed),
        `step_seconds` (median), `embedding_seconds` (of a sample), `achieved_flops` (FLOP/s of the worker),
        `seconds` (of the run, evaluation included) and `gpu_hours`.

    Raises:
        ConfigError: The step needs more memory than the machine has free.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads, before = 0, torch.get_num_threads()
    if device.type == "cpu":
        _check_memory(work)
        threads = max(1, len(os.sched_getaffinity(0)) // config.train.workers)
    try:
        torch.set_num_threads(threads or before)
        keep_freed_memory()
        clip = fresh_clip(run_data.clip_source(config))
        model = STMI(config.model, clip, identities, cameras, config.seed).to(device)
        rehearsal = Rehearsal(config, model, clip.model.context_length, config.train.compile)
        steps = _time(rehearsal.train, device, warm_up=2 if config.train.compile else 1)
        samples = min(config.train.evaluation_batch, rehearsal.share)
        embeddings = _time(lambda step: rehearsal.embed(samples), device, warm_up=1)
    finally:
        torch.set_num_threads(before)
    step = statistics.median(steps)
    embedding = statistics.median(embeddings) / samples
    seconds = work.steps * step + work.embedded * embedding / work.workers
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "processor",
        "threads": threads,
        "samples": rehearsal.share,
        "steps": len(steps),
        "step_seconds": step,
        "embedding_seconds": embedding,
        "achieved_flops": rehearsal.share * work.step_flops / step,
        "seconds": seconds,
        "gpu_hours": work.workers * seconds / 3600 if device.type == "cuda" else 0.0,
    }


def _check_memory(work: Work) -> None:
    free = psutil.virtual_memory().available
    if work.peak_bytes > free:
        raise ConfigError(
            f"--calibrate: a step of one worker needs {work.peak_bytes / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; take more train.workers, or a smaller batch.size"
        )


def _time(work: Callable[[int], object], device: torch.device, warm_up: int) -> list[float]:
    """Seconds of each call after the warm-up; calls are told their number."""
    seconds: list[float] = []
    began = time.perf_counter()
    for number in range(warm_up + STEPS):
        start = time.perf_counter()
        work(number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if number >= warm_up and time.perf_counter() - began > MOST_SECONDS:
            break
    return seconds[warm_up:]
