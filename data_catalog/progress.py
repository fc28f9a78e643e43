"""Progress of long steps, on standard error: a bar in a terminal, in a file or a log a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Time between two lines where there is no terminal."""

Progress = Callable[[int, int], None]
"""Called with the number of shards, samples, ... that are done, and their number in all."""


class ShowProgress(Protocol):
    """Shows how far a step is."""

    def __call__(self, done: int, text: str = "", title: str | None = None) -> None:
        """Show it.

        Args:
            done: How many units are done.
            text: What else there is to say.
            title: A new title.
        """


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Progress]:
    """Shows the progress of a step with the time left; it appears with the first unfinished report."""
    with ExitStack() as stack:
        show: ShowProgress | None = None

        def report(done: int, total: int) -> None:
            nonlocal show
            if show is None and done < total:
                show = stack.enter_context(open_progress(title, unit, total, done))
            elif show is not None:
                show(done)

        yield report


@contextmanager
def open_progress(
    title: str, unit: str, total: int, done: int = 0, *, line_each: bool = False
) -> Iterator[ShowProgress]:
    """Shows a progress with the time left until the block ends.

    Args:
        title: What is going on.
        unit: What is counted, in the singular.
        total: How many there are.
        done: How many were done before.
        line_each: Where there is no terminal, print a line whenever a unit is done; otherwise once a minute.
    """
    shown: _Bar | _Lines
    if sys.stderr.isatty():
        shown = _Bar(title, unit, total, done)
    else:
        shown = _Lines(title, unit, total, done, 0.0 if line_each else LINE_SECONDS)
    try:
        yield shown.show
    finally:
        shown.close()


class _Bar:
    """A bar that is drawn again and again."""

    def __init__(self, title: str, unit: str, total: int, done: int) -> None:
        self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, file=sys.stderr, mininterval=0.5)

    def show(self, done: int, text: str = "", title: str | None = None) -> None:
        if title is not None:
            self._bar.set_description(title, refresh=False)
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """A line at the start, after each pause in which something was done, and at the end."""

    def __init__(self, title: str, unit: str, total: int, done: int, pause_seconds: float) -> None:
        self._title, self._unit, self._total, self._pause = title, unit, total, pause_seconds
        self._first = self._done = done
        self._text = ""
        self._start = time.monotonic()
        self._print()

    def show(self, done: int, text: str = "", title: str | None = None) -> None:
        self._title, self._text = title or self._title, text
        if done == self._done:
            return
        self._done = done
        if time.monotonic() - self._printed_at >= self._pause:
            self._print()

    def close(self) -> None:
        if self._printed != self._done:
            self._print()

    def _print(self) -> None:
        self._printed, self._printed_at = self._done, time.monotonic()
        parts = [f"{self._title}: {self._done}/{self._total} {self._unit}s"]
        elapsed = self._printed_at - self._start
        if new := self._done - self._first:
            left = elapsed / new * (self._total - self._done)
            parts.append(f"{tqdm.format_interval(elapsed)} elapsed, {tqdm.format_interval(left)} left")
        sys.stderr.write(", ".join(filter(None, [*parts, self._text])) + "\n")
        sys.stderr.flush()
