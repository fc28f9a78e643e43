"""What Ray Train's controller does with each report of the workers: write it into the run's journal."""

from typing import Any

from ray.train import Checkpoint, UserCallback

from experiments.journal import Journal


class JournalCallback(UserCallback):
    """Appends every report to a journal, after its checkpoint is stored.

    The controller runs on the driver's node, so the journal is a local file wherever the workers are.

    Args:
        journal: Where to write.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Write the first worker's report; all workers report the same."""
        facts = dict(metrics[0])
        event = facts.pop("event")
        # What a crash kept from the journal comes back with the checkpoint.
        known = {(past["event"], past.get("epoch")) for past in self.journal.read()}
        for past in facts.pop("history", []):
            if (past["event"], past.get("epoch")) not in known:
                self.journal.append(past.pop("event"), **past)
        self.journal.append(event, **facts, checkpoint=checkpoint.path if checkpoint else None)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Note a crash."""
        errors = {str(rank): repr(error)[:2000] for rank, error in worker_exceptions.items()}
        self.journal.append("worker_failed", errors=errors)
