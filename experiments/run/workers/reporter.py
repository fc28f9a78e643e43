"""What a worker reports: what happened, how long each part of it took, and the run's checkpoints."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

from pydantic_core import to_jsonable_python

from experiments.run.checkpoints import Checkpoint
from experiments.run.workers.session import Session
from experiments.tracking.journal import Event


class Clock:
    """Seconds spent by part, so that a run can report where its time went.

    A part within another one counts on its own, and not towards the outer one.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._part: str | None = None
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside towards a part."""
        outer = self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def take(self) -> dict[str, float]:
        """The seconds counted since the last call."""
        self._enter(self._part)
        taken = {name: round(value, 4) for name, value in self.seconds.items()}
        self.seconds.clear()
        return taken

    def _enter(self, name: str | None) -> str | None:
        """Begin another part; returns the one that ends."""
        now = time.perf_counter()
        if self._part is not None:
            self.seconds[self._part] += now - self._since
        ended, self._part, self._since = self._part, name, now
        return ended


class Reporter:
    """Sends what happened to the driver, and checkpoints to where they are kept.

    Each checkpoint holds all that was reported until then: the driver may die after a checkpoint is stored
    and before its journal knows of it.

    Args:
        session: The worker's.
        clock: Clock of this start of the run.
        began: When it began, in seconds since 1970.
        history: What earlier starts reported.
        not_deterministic: Names of operations without a deterministic algorithm, as they are found.
    """

    def __init__(
        self,
        session: Session,
        clock: Clock,
        began: float,
        history: list[Event],
        not_deterministic: Set[str] = frozenset(),
    ) -> None:
        self.session = session
        self.clock = clock
        self.began = began
        self.history = history
        self.not_deterministic = not_deterministic

    def report(self, event: str, **facts: Any) -> None:
        """Report an event."""
        report = self._report(event, facts)
        if event != "resumed":
            self.history.append(report)
        with self.clock.part("report"):
            self.session.report(report)

    def store(self, event: str, take: Callable[[list[Event]], Checkpoint], **facts: Any) -> None:
        """Report an event with a checkpoint, which is written while training goes on.

        Training stands still until the checkpoint before it is written, so that only one is held in memory,
        and while this one is copied.

        Args:
            event: Its name.
            take: Copies the run's state to memory; is given what was reported so far. Called on the first
                worker only.
            **facts: What belongs to the event.
        """
        with self.clock.part("checkpoint"):
            self.session.wait()
            checkpoint = take(list(self.history)) if self.session.rank == 0 else None
            self.session.report(self._report(event, facts), checkpoint)

    def _report(self, event: str, facts: Event) -> Event:
        if self.not_deterministic:
            facts = facts | {"not_deterministic": sorted(self.not_deterministic)}
        facts = to_jsonable_python({"event": event, "began": self.began, **facts})
        return facts | {"seconds": self.clock.take()}
