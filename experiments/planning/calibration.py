"""A few real training steps on this machine, and how long the run takes if all its steps are like them."""

import statistics
import time
from collections.abc import Callable

import psutil
import torch

from data_catalog.records import Record
from experiments.experiment_config import ConfigError, ExperimentConfig
from experiments.planning.dry_run import DryRun, untrained_clip
from experiments.planning.expected_time import Workload
from stmi.kernels.host_memory import keep_freed_memory
from stmi.model import STMI
from stmi.processors import usable_processors

STEPS = 5
"""Steps that are timed, after one to warm up (two where the network is compiled)."""
TIME_LIMIT_SECONDS = 60.0
"""No further step starts after this time; one is always timed."""


class Calibration(Record):
    """Times of one worker on this machine."""

    device: str
    """Name of the GPU, or `processor`."""
    threads: int
    """0 on a GPU."""
    samples: int
    """Samples of a step on this worker."""
    steps: int
    """Number of steps that were timed."""
    step_seconds: float
    """Median time of a step."""
    embedding_seconds: float
    """Time to embed one sample."""
    achieved_flops: float
    """FLOP/s of the worker."""
    seconds: float
    """Seconds of the run, evaluation included."""
    gpu_hours: float


def calibrate(config: ExperimentConfig, workload: Workload, identities: int, cameras: int) -> Calibration:
    """Time the run's own step on one worker's share, with random weights and random pixels.

    A worker has a GPU of its own where the machine has one; otherwise its share of the CPUs, as in a run. The
    exchange of gradients is not measured, nor how workers on one machine slow each other down: two workers of
    the demo took a fifth longer.

    Raises:
        ConfigError: The step needs more memory than the machine has free.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads, previous = 0, torch.get_num_threads()
    if device.type == "cpu":
        _check_memory(workload)
        threads = max(1, usable_processors() // config.train.workers)
    try:
        torch.set_num_threads(threads or previous)
        keep_freed_memory()
        clip = untrained_clip(config)
        model = STMI(config.model, clip, identities, cameras, config.seed).to(device)
        run = DryRun(config, model, clip.model.context_length, config.train.compile)
        steps = _time(run.train, device, warm_up=2 if config.train.compile else 1)
        samples = min(config.train.evaluation_batch, run.share)
        embeddings = _time(lambda step: run.embed(samples), device, warm_up=1)
    finally:
        torch.set_num_threads(previous)
    step = statistics.median(steps)
    embedding = statistics.median(embeddings) / samples
    seconds = workload.steps * step + workload.embedded * embedding / workload.workers
    return Calibration(
        device=torch.cuda.get_device_name() if device.type == "cuda" else "processor",
        threads=threads,
        samples=run.share,
        steps=len(steps),
        step_seconds=step,
        embedding_seconds=embedding,
        achieved_flops=run.share * workload.step_flops / step,
        seconds=seconds,
        gpu_hours=workload.workers * seconds / 3600 if device.type == "cuda" else 0.0,
    )


def _check_memory(workload: Workload) -> None:
    free = psutil.virtual_memory().available
    if workload.peak_bytes > free:
        raise ConfigError(
            f"--calibrate: a step of one worker needs {workload.peak_bytes / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; take more train.workers, or a smaller batch.size"
        )


def _time(function: Callable[[int], object], device: torch.device, warm_up: int) -> list[float]:
    """Seconds of each call after the warm-up; the function gets the number of the call."""
    seconds: list[float] = []
    began = time.perf_counter()
    for number in range(warm_up + STEPS):
        start = time.perf_counter()
        function(number)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if number >= warm_up and time.perf_counter() - began > TIME_LIMIT_SECONDS:
            break
    return seconds[warm_up:]
