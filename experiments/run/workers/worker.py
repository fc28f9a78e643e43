"""What Ray Train calls: a function in every worker of a run, and a callback for reports in its controller.

Light to import: the controller, which starts the workers, imports this file too, and the workers wait for the
controller.
"""

from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint, UserCallback

from data_catalog.errors import CatalogError, StorageAwayError
from data_catalog.ray_failures import describe_failure
from data_catalog.storage.claims import LostClaimError
from data_catalog.storage.folders import Folder
from experiments.run.micro_batches import StepMemoryError
from experiments.run.stop_request import StopRequest
from experiments.run.workers.training_input import TrainingInput
from experiments.tracking.journal import Event, Journal
from stmi.errors import ClipFileError
from stmi.processors import usable_processors

PERMANENT = (CatalogError, ClipFileError)
"""What a worker finds wrong with files, or cannot write: it is not tried again."""


def train_worker(given: dict[str, TrainingInput]) -> None:
    """One worker's whole run; called by Ray Train.

    Args:
        given: `input`.
    """
    from experiments.run.workers.session import RayTrainSession  # noqa: PLC0415 - imports torch, which takes seconds
    from experiments.run.workers.training_loop import train  # noqa: PLC0415

    own, workers_on_this_node = given["input"], ray.train.get_context().get_local_world_size()
    threads = own.threads or max(1, usable_processors() // workers_on_this_node)
    train(own, RayTrainSession(threads, own.checkpoint, StopRequest(*own.stop_folders)))


class JournalCallback(UserCallback):
    """Appends every report to a journal, after its checkpoint is stored.

    The controller is the run's only writer while it trains. It runs on the driver's node, so on a disk the
    journal is a local file wherever the workers are.

    Args:
        journal: Where to write.
        storage: Where the run's checkpoints go; None for its own folder, in which names without a path do.
    """

    def __init__(self, journal: Journal, storage: Folder | None) -> None:
        self.journal = journal
        self.storage = storage

    def after_report(self, run_context: Any, metrics: list[Event], checkpoint: Checkpoint | None) -> None:
        """Write the first worker's report; all workers report the same."""
        stored = None if checkpoint is None else Path(checkpoint.path).name
        if stored is not None and self.storage is not None:
            stored = self.storage.file(stored)
        self.journal.record(metrics[0], stored)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Note a crash.

        Raises:
            CatalogError, ClipFileError: A worker found files that are damaged, or cannot write.
            StepMemoryError: A worker ran out of memory, which the driver notes. The others wait for it in an
                exchange until they are ended.
            StorageAwayError: A worker has waited for the storage of the journal, too, as long as it may.
        """
        for error in worker_exceptions.values():
            if isinstance(error, StepMemoryError | StorageAwayError):
                raise error
        # A retry would find the same file.
        permanent = [error for error in worker_exceptions.values() if _is_permanent(error)]
        errors = {str(rank): repr(error)[:2000] for rank, error in worker_exceptions.items()}
        reasons = {str(rank): describe_failure(error) for rank, error in worker_exceptions.items()}
        self.journal.append("worker_failed", reasons=reasons, errors=errors, goes_on=not permanent)
        for error in permanent:
            # An error of the callback ends the run.
            raise error


def _is_permanent(error: Exception) -> bool:
    return isinstance(error, PERMANENT) and not isinstance(error, LostClaimError)
