"""The small run in a process that kills itself at a moment, as SIGKILL from outside would."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import experiments.run.workers.training_loop  # noqa: F401 - imported once, by the server that forks the processes
from experiments.run.checkpoints import Checkpoint
from experiments.tracking.journal import Journal
from stmi.training.train_step import TrainStep
from tests.experiments import small_run
from tests.kept_workspace import CLIP

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def die(*given: Any) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(checkpoint: Checkpoint, folder: Path) -> None:
    """Begin a checkpoint, and end."""
    (folder / "model.safetensors").write_bytes(b"half")
    die()


def append_half(journal: Journal, event: str, **facts: Any) -> None:
    """Begin a line of a journal, and end."""
    with Path(journal.location).open("a") as file:
        file.write('{"event": "check')
    die()


MOMENTS: dict[str, tuple[type, str, Callable[..., None]]] = {
    "before a step": (TrainStep, "__call__", die),
    "in the write of a checkpoint": (Checkpoint, "write", write_half),
    "between a checkpoint and its journal": (Journal, "record", die),
    "in the write of the journal": (Journal, "append", append_half),
}


def _train_until(moment: str, count: int, workspace: Path, runs: Path, settings: tuple[str, ...]) -> None:
    owner, name, end = MOMENTS[moment]
    called, original = 0, getattr(owner, name)

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal called
        called += 1
        return (end if called == count else original)(*given, **named)

    setattr(owner, name, counted)
    small_run.alone(CLIP, workspace, *settings, runs=runs)


def train_until(moment: str, count: int, workspace: Path, runs: Path, *settings: str) -> None:
    """Begin or continue the small run, and kill it.

    Args:
        moment: One of `MOMENTS`.
        count: At which of these moments, counted from 1 in this start.
        workspace: Where its tables are.
        runs: The workspace of the run itself.
        *settings: Changes.
    """
    process = PROCESSES.Process(target=_train_until, args=(moment, count, workspace, runs, settings))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"ended with {process.exitcode} before it was killed"
