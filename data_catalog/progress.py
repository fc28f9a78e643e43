"""Progress of long steps: the function that reports it, and a bar that shows it on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""Called with the number of shards, samples, ... that are done, and their number in all."""


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Progress]:
    """A bar with the time left, on standard error; it appears with the first unfinished report."""
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
