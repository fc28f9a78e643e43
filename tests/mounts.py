"""File systems that tests mount: read-only ones, and small ones that fill up. Only root may mount."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from experiments.faults import small_disk
from experiments.faults.small_disk import enlarge

__all__ = ["enlarge", "read_only", "small"]


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Context in which a folder is read-only, also for root."""
    with _skipping():
        small_disk.mount("--bind", str(folder), str(folder))
    try:
        small_disk.mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small(folder: Path, size: int) -> Iterator[None]:
    """Context in which a folder is an empty disk of so many bytes."""
    with ExitStack() as mounted:
        with _skipping():
            mounted.enter_context(small_disk.small_disk(folder, size))
        yield


@contextmanager
def _skipping() -> Iterator[None]:
    """A test whose mount fails here is skipped."""
    try:
        yield
    except OSError as error:
        pytest.skip(f"this machine does not let the tests mount: {error}")
