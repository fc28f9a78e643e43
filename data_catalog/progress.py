"""The bar that shows long work and its estimate, on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from data_catalog.tables.building import Progress


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Progress]:
    """A bar with an estimate on standard error, shown once there is something to wait for."""
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
