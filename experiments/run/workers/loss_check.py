"""A loss or gradient that is not finite ends a run, or its batch is left out; either way it is named."""

import math

from torch import Tensor

from data_catalog.errors import name_first
from data_catalog.views.joined_view import JoinedView
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.progress import Progress
from experiments.run.workers.session import Session
from experiments.tracking.journal import Event


class DivergedError(RuntimeError):
    """The loss, or its gradient, is not finite any more.

    Attributes:
        failed_step: The step, and the ids of its samples.
    """

    def __init__(self, message: str, failed_step: Event) -> None:
        super().__init__(message)
        self.failed_step = failed_step


class LossCheck:
    """Checks the loss of each step, which is NaN where its gradient is not finite.

    It is that of the global batch, so all workers find the same.

    Args:
        schedule: The batches.
        view: The training views, as this worker opened it.
        session: The worker's.
        skips: Whether a batch whose loss is not finite is left out, in place of ending the run.
    """

    def __init__(self, schedule: BatchSchedule, view: JoinedView, session: Session, skips: bool) -> None:
        self.schedule = schedule
        self.view = view
        self.session = session
        self.skips = skips

    def count(self, progress: Progress, losses: dict[str, Tensor], rate: float, steps: int) -> None:
        """Count a step of an epoch.

        Args:
            progress: That of the run before the step.
            losses: Before the step, detached scalars.
            rate: Its learning rate.
            steps: Steps of the epoch.

        Raises:
            DivergedError: As `check`; or every batch of the epoch was left out.
        """
        is_skipped = self.skips and not math.isfinite(losses["total"])
        progress.count_step(losses, rate, is_skipped=is_skipped)
        if len(progress.skipped) == steps:
            remedy = "no other batch's is finite; lower optim.learning_rate, or set optim.gradient_clip"
            raise self._diverged(progress, progress.skipped[0], remedy)
        # The loss of the step before is there: to ask for this one would keep a GPU waiting.
        self.check(progress, running=1)

    def check(self, progress: Progress, running: int = 0) -> None:
        """Refuse to go on with a loss that is not finite, where batches are not left out.

        Args:
            progress: The run's.
            running: How many of the last steps are not looked at.

        Raises:
            DivergedError: Names the step and its samples.
        """
        if (index := progress.find_not_finite(running)) is not None:
            raise self._diverged(
                progress,
                index,
                "lower optim.learning_rate, set optim.gradient_clip, or leave such batches out with --on-nan "
                "skip",
            )

    def failed_step(self, progress: Progress, index: int) -> Event:
        """A step as the journal has it: its number in the run, and the ids of its samples.

        Args:
            progress: The run's.
            index: Index of the step in the epoch, from 0.
        """
        rows = self.schedule.rows(self.session.rank, progress.epoch)[index]
        shares = self.session.gather(self.view.sample_id[rows].tolist())
        step = progress.step - progress.in_epoch + index + 1
        return {"step": step, "samples": [sample for share in shares for sample in share]}

    def _diverged(self, progress: Progress, index: int, remedy: str) -> DivergedError:
        step = self.failed_step(progress, index)
        return DivergedError(
            f"the loss of epoch {progress.epoch + 1}, or its gradient, is not finite in step {step['step']}, "
            f"at learning rate {progress.rate:.3g} and with samples {name_first(step['samples'])} (the "
            f"journal lists all); {remedy}",
            step,
        )
