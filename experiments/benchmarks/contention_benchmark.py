"""A training step in Ray's worker, alone and beside a process that keeps all processors busy."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil

from data_catalog.environment import SHARING, WAITING
from data_catalog.ray_session import require_token
from experiments.benchmarks.measuring import BenchmarkReport, measure_in_turns
from experiments.recipes import ROOT, resolve
from stmi.processors import usable_processors

STEPS = 10
"""Steps of a measured call: a step alone is shorter than what the system gives a thread at a time."""
NICENESS = "RAY_worker_niceness"


def contention(repeats: int) -> BenchmarkReport:
    """Ten steps of the demo on all processors, shared in the libraries' own way and in the project's.

    Alone, the project's way has its ratio to the libraries'. Beside a busy process, which is such a training
    of no niceness whose threads wait in OpenMP's own way, it has its ratio to itself alone; 2 is a fair
    share. The libraries' own way would take minutes there. All take turns; the busy process stands still
    in those that are alone.
    """
    # A worker inherits the other variables; of these it has what it is given.
    inherited = {"PYTHONPATH": str(ROOT)}
    variants: dict[str, Callable[[], Callable[[], Any]]] = {
        "alone, the libraries' own sharing": partial(_alone, inherited),
        "alone, the project's sharing": partial(_alone, inherited | SHARING),
        "beside a busy process, the project's sharing": partial(
            _beside_busy, inherited | SHARING, inherited | {NICENESS: "0"}
        ),
    }
    with _ray_without(*WAITING, *SHARING):
        measured = measure_in_turns(variants, repeats, samples=0)
    # The memory is that of this process, which does not train.
    unknown = {"peak_memory_bytes": None, "memory_before_bytes": None}
    own, alone, beside = (one.model_copy(update=unknown) for one in measured)
    settings = {"recipe": "demo", "steps": STEPS, "processors": usable_processors()}
    results = (own, alone.compared_with(own), beside.compared_with(alone))
    return BenchmarkReport(name="contention", settings=settings, results=results)


def _alone(environment: Mapping[str, str]) -> Callable[[], Any]:
    """Some steps of a training of its own."""
    import ray  # noqa: PLC0415

    training = _begin_training(environment)
    return lambda: ray.get(training.train.remote(STEPS))


def _beside_busy(environment: Mapping[str, str], of_busy: Mapping[str, str]) -> Callable[[], Any]:
    """The same beside another training, which stands still otherwise."""
    import ray  # noqa: PLC0415

    busy = _begin_training(of_busy)
    process = psutil.Process(ray.get(busy.pid.remote()))
    busy.train.remote(sys.maxsize)
    process.suspend()
    train = _alone(environment)

    def train_beside() -> None:
        process.resume()
        train()
        process.suspend()

    return train_beside


@contextmanager
def _ray_without(*names: str) -> Iterator[None]:
    """Ray on this machine, whose workers do not inherit these variables."""
    import ray  # noqa: PLC0415

    for name in names:
        os.environ.pop(name, None)
    require_token()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _begin_training(environment: Mapping[str, str]) -> Any:
    import ray  # noqa: PLC0415

    return ray.remote(_Training).options(num_cpus=0, runtime_env={"env_vars": dict(environment)}).remote()


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

    def pid(self) -> int:
        return os.getpid()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self._run.train()
