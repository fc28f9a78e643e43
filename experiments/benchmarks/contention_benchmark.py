"""A training step in Ray's worker, alone and beside a process that keeps all processors busy."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from data_catalog.environment import SHARING, WAITING
from experiments.benchmarks.measuring import BenchmarkReport, Measurement, measure
from experiments.recipes import ROOT, resolve
from stmi.processors import usable_processors

STEPS = 10
"""Of a measured call: a step alone is shorter than what the system gives a thread at a time."""
NICENESS = "RAY_worker_niceness"


def contention(repeats: int) -> BenchmarkReport:
    """Ten steps of the demo on all processors, shared in the libraries' own way and in the project's.

    Alone, the project's way has its ratio to the libraries'. Beside a busy process, which is such a training
    of no niceness whose threads wait in OpenMP's own way, it has its ratio to itself alone; 2 is a fair
    share. The libraries' own way would take minutes there.
    """
    # A worker inherits the others; of these it has what it is given.
    inherited = {"PYTHONPATH": str(ROOT)}
    with _ray_without(*WAITING, *SHARING):
        own = _measure("alone, the libraries' own sharing", _begin_training(inherited), repeats)
        training = _begin_training(inherited | SHARING)
        ours = _measure("alone, the project's sharing", training, repeats)
        busy = _begin_training(inherited | {NICENESS: "0"})
        busy.train.remote(sys.maxsize)
        beside = _measure("beside a busy process, the project's sharing", training, repeats)
    settings = {"recipe": "demo", "steps": STEPS, "processors": usable_processors()}
    results = (own, ours.compared_with(own), beside.compared_with(ours))
    return BenchmarkReport(name="contention", settings=settings, results=results)


@contextmanager
def _ray_without(*names: str) -> Iterator[None]:
    """Ray on this machine, whose workers do not inherit these variables."""
    import ray  # noqa: PLC0415

    for name in names:
        os.environ.pop(name, None)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _begin_training(environment: Mapping[str, str]) -> Any:
    import ray  # noqa: PLC0415

    return ray.remote(_Training).options(num_cpus=0, runtime_env={"env_vars": dict(environment)}).remote()


def _measure(variant: str, training: Any, repeats: int) -> Measurement:
    import ray  # noqa: PLC0415

    measured = measure(variant, lambda: ray.get(training.train.remote(STEPS)), repeats)
    # The memory is that of this process, which does not train.
    return measured.model_copy(update={"peak_memory_bytes": None, "memory_before_bytes": None})


class _Training:
    """A process that trains the demo's model."""

    def __init__(self) -> None:
        import torch  # noqa: PLC0415 - not in the process that measures

        from experiments.planning.dry_run import DryRun, untrained_clip  # noqa: PLC0415
        from stmi.model import STMI  # noqa: PLC0415

        torch.set_num_threads(usable_processors())
        config = resolve("demo", ["train.workers=1"])
        clip = untrained_clip(config)
        model = STMI(config.model, clip, identities=60, cameras=4, seed=0)
        self._run = DryRun(config, model, clip.model.context_length)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self._run.train()
