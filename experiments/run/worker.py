"""What a worker of a run is given, and what Ray Train calls in it.

Light to import: Ray Train's controller, which starts the workers, imports this file as well, and they would
wait for it.
"""

import os
from dataclasses import dataclass
from typing import Any

import ray.train

from data_catalog.tables.table import Table
from experiments.recipes import ExperimentConfig


@dataclass(frozen=True)
class Work:
    """What a run's workers are given.

    Attributes:
        config: The run's settings.
        views: Split name to view.
        captions: What the text features of the views were made from.
        clip: Source of the CLIP, as workers find it.
    """

    config: ExperimentConfig
    views: dict[str, Table]
    captions: Table
    clip: str


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's whole run; called by Ray Train.

    Args:
        settings: `work` (a `Work`) and `begun` (the checkpoint that the run was left with, or None).
    """
    from experiments.run.session import RayTrainSession  # noqa: PLC0415 - imports torch, which takes seconds
    from experiments.run.training_loop import train  # noqa: PLC0415

    nearby = ray.train.get_context().get_local_world_size()
    threads = max(1, len(os.sched_getaffinity(0)) // nearby)
    train(settings["work"], RayTrainSession(threads, settings["begun"]))
