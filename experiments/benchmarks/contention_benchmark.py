"""A training step alone and beside a process that keeps all processors busy, by how waiting threads wait."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, cast

from data_catalog.environment import DEFAULTS, WAITING
from experiments.benchmarks.measuring import BenchmarkReport, Measurement, measure
from experiments.recipes import ROOT, resolve
from stmi.processors import usable_processors

STEPS = 10
"""Of a measured call: a step alone is shorter than what the system gives a thread at a time."""


def contention(repeats: int) -> BenchmarkReport:
    """Ten steps of the demo on all processors, by OpenMP's own way of waiting and by the project's.

    Alone, the project's way has its ratio to OpenMP's; beside a busy process, which is another such training
    with OpenMP's own way, each has its ratio to itself alone: fair shares would give 2.
    """
    usual = {name: value for name, value in os.environ.items() if name not in WAITING}
    environments = {"OpenMP's own waiting": usual, "the project's waiting": usual | DEFAULTS}
    with ExitStack() as running:
        trainings = {name: running.enter_context(_training(each)) for name, each in environments.items()}
        own, ours = (_measure(f"alone, {name}", each, repeats) for name, each in trainings.items())
        _begin(running.enter_context(_training(usual)), sys.maxsize)
        beside = [
            _measure(f"beside a busy process, {name}", each, repeats) for name, each in trainings.items()
        ]
    compared = (each.compared_with(base) for each, base in zip(beside, (own, ours), strict=True))
    settings = {"recipe": "demo", "steps": STEPS, "processors": usable_processors()}
    return BenchmarkReport(
        name="contention", settings=settings, results=(own, ours.compared_with(own), *compared)
    )


def _measure(variant: str, training: subprocess.Popen[str], repeats: int) -> Measurement:
    def train() -> None:
        _begin(training, STEPS)
        if not cast(IO[str], training.stdout).readline():
            raise RuntimeError(f"{variant}: the training ended with {training.wait()}")

    measured = measure(variant, train, repeats)
    # The memory is that of this process, which does not train.
    return measured.model_copy(update={"peak_memory_bytes": None, "memory_before_bytes": None})


def _begin(training: subprocess.Popen[str], steps: int) -> None:
    given = cast(IO[str], training.stdin)
    given.write(f"{steps}\n")
    given.flush()


@contextmanager
def _training(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that trains as many steps as each line says, and answers each with a line."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def _work() -> None:
    import torch  # noqa: PLC0415 - not in the process that measures

    from experiments.planning.dry_run import DryRun, untrained_clip  # noqa: PLC0415
    from stmi.model import STMI  # noqa: PLC0415

    torch.set_num_threads(usable_processors())
    config = resolve("demo", ["train.workers=1"])
    clip = untrained_clip(config)
    run = DryRun(
        config, STMI(config.model, clip, identities=60, cameras=4, seed=0), clip.model.context_length
    )
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            run.train()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    _work()
