"""When a run is checkpointed: by epochs, by steps, by minutes, and where it is asked to stop."""

import time
from enum import IntEnum

from experiments.experiment_config import TrainConfig
from experiments.run.workers.session import Session


class Due(IntEnum):
    """What is due after a step."""

    NOTHING = 0
    CHECKPOINT = 1
    STOP = 2
    """A checkpoint, and the end of this start."""


class CheckpointSchedule:
    """Says after each step and each epoch whether a checkpoint is due; the same on every worker.

    Args:
        config: `checkpoint_every`, `checkpoint_steps` and `checkpoint_minutes`.
        session: The worker's.
        stops: As in `TrainingInput`.
    """

    def __init__(self, config: TrainConfig, session: Session, stops: tuple[int, ...] | None = None) -> None:
        self.config = config
        self.session = session
        self.stops = stops or ()
        self._since = time.monotonic()

    def after_step(self, step: int) -> Due:
        """What is due after a step; a checkpoint counts as taken, or as left for `after_epoch`.

        Args:
            step: Step of the run, from 1.
        """
        minutes = self.config.checkpoint_minutes
        is_late = minutes is not None and time.monotonic() - self._since >= 60 * minutes
        is_due = is_late or self._is_multiple(step) or step in self.stops
        wish = Due.CHECKPOINT if is_due else Due.NOTHING
        if self.session.stop_request.is_made or step == max(self.stops, default=None):
            wish = Due.STOP
        # Clocks differ, and so does what the workers have seen: the first one decides.
        due = Due(self.session.agree(wish))
        if due:
            self._since = time.monotonic()
        return due

    def after_epoch(self, epoch: int, due: Due) -> bool:
        """Whether a checkpoint is due after an epoch.

        Args:
            epoch: From 1.
            due: What was due after its last step, and was left for the end of the epoch.
        """
        is_last = epoch == self.config.epochs
        return is_last or epoch % self.config.checkpoint_every == 0 or due is Due.CHECKPOINT

    def _is_multiple(self, step: int) -> bool:
        steps = self.config.checkpoint_steps
        return steps is not None and step % steps == 0
