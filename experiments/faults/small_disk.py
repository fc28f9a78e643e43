"""A disk in memory that fills up. Only root may mount it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Context in which a folder is an empty disk of so many bytes.

    Raises:
        OSError: This machine does not let this process mount; says why.
    """
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path, size: int) -> None:
    """Give a small disk so many bytes in all."""
    mount("-o", f"remount,size={size}", str(folder))


def mount(*arguments: str) -> None:
    """Call `mount`.

    Raises:
        OSError: It fails, or is not there.
    """
    mounted = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise OSError(mounted.stderr.strip())
