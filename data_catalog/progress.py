"""Progress of long work: what reports it, and the bar that shows it on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""Called with how much is done (of shards, samples, ...) and how much there is in all."""


def no_progress(done: int, total: int) -> None:
    """Report to nobody."""


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Progress]:
    """A bar with the time left, on standard error; shown once there is something to wait for."""
    bars: list[tqdm[Any]] = []

    def report(done: int, total: int) -> None:
        if not bars and done < total:
            bars.append(
                tqdm(total=total, initial=done, desc=title, unit=unit, file=sys.stderr, mininterval=0.5)
            )
        for bar in bars:
            bar.update(done - bar.n)

    try:
        yield report
    finally:
        for bar in bars:
            bar.close()
