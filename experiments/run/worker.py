"""What Ray Train calls in each worker of a run.

Light to import: Ray Train's controller, which starts the workers, imports this file as well, and they would
wait for it.
"""

import os

import ray.train

from experiments.run.training_input import TrainingInput


def train_worker(given: dict[str, TrainingInput]) -> None:
    """One worker's whole run; called by Ray Train.

    Args:
        given: `input`.
    """
    from experiments.run.session import RayTrainSession  # noqa: PLC0415 - imports torch, which takes seconds
    from experiments.run.training_loop import train  # noqa: PLC0415

    workers_on_this_node = ray.train.get_context().get_local_world_size()
    threads = max(1, len(os.sched_getaffinity(0)) // workers_on_this_node)
    train(given["input"], RayTrainSession(threads, given["input"].checkpoint))
