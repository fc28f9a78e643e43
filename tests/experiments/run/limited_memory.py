"""Memory that holds the activations of few samples: PyTorch's allocator refuses a step that needs more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.train
import torch

from experiments.run.workers import worker
from experiments.run.workers.training_input import TrainingInput
from stmi.model import STMI
from stmi.model_input import ModelInput
from stmi.training.train_step import TrainStep

LARGEST = 2**55
"""Bytes that no machine has."""


@contextmanager
def room_for(samples: int, from_step: int = 1) -> Iterator[list[int]]:
    """Context in which a training step with more samples at a time fails in this process for want of memory.

    Args:
        samples: That the network may train on at a time.
        from_step: The first step, of all that are tried meanwhile, for which this holds.

    Yields:
        How many samples there were in each pass of the network, with or without a gradient, as it grows.
    """
    steps, passed = 0, list[int]()
    original, forward = TrainStep.__call__, STMI.forward

    def step(self: TrainStep, *given: Any) -> Any:
        nonlocal steps
        steps += 1
        return original(self, *given)

    def passing(self: STMI, batch: ModelInput, draws: Any = None) -> Any:
        if self.training and steps:
            passed.append(len(batch.images))
            if steps >= from_step and len(batch.images) > samples:
                torch.empty(LARGEST)
        return forward(self, batch, draws)

    TrainStep.__call__, STMI.forward = step, passing
    try:
        yield passed
    finally:
        TrainStep.__call__, STMI.forward = original, forward


def train_worker_with_room(given: dict[str, TrainingInput]) -> None:
    """`train_worker`; from the sixth step of a start on the second worker has room for two samples."""
    if ray.train.get_context().get_world_rank() == 1:
        with room_for(2, from_step=6):
            worker.train_worker(given)
    else:
        worker.train_worker(given)
