"""What Ray Train's controller does with each report of the workers: write it into the run's journal."""

from pathlib import Path
from typing import Any

from ray.train import Checkpoint, UserCallback

from data_catalog.storage import filesystems
from experiments.tracking.journal import Journal


class JournalCallback(UserCallback):
    """Appends every report to a journal, after its checkpoint is stored.

    The controller runs on the driver's node, so the journal is a local file wherever the workers are.

    Args:
        journal: Where to write.
        location: Folder or URI of the run's checkpoints.
    """

    def __init__(self, journal: Journal, location: str) -> None:
        self.journal = journal
        self.location = location

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Write the first worker's report; all workers report the same."""
        stored = None if checkpoint is None else filesystems.join(self.location, Path(checkpoint.path).name)
        self.journal.record(metrics[0], stored)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Note a crash."""
        errors = {str(rank): repr(error)[:2000] for rank, error in worker_exceptions.items()}
        self.journal.append("worker_failed", errors=errors)
