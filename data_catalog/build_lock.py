"""One builder at a time: whoever wants a table that is being built waits for it.

On a local (or shared) disk the lock is that of the operating system on a file in the table's folder. It
goes with the process that holds it, however that ends, so a builder that was killed blocks nobody.

Object storage has no such lock, so there a builder lays a claim: an object of its own, which it writes again
every few seconds. A claim that does not change any more was left by a builder that was killed, and whoever
waits removes it.

Should two build at once all the same (the one was suspended for a minute, or the disk refuses locks), they
write the same shards under the same names, each whole, and the same digest into the manifest: whoever is
last wins and nothing changes.
"""

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pyarrow import fs

from data_catalog import storage
from data_catalog.errors import NotWritableError

LOCK = ".lock"
CLAIM = ".claim-"
_POLL_SECONDS = 0.5
_RENEWAL_SECONDS = 5.0
_CLAIM_SECONDS = 30.0
"""How long a claim holds that is not renewed."""

_LOGGER = logging.getLogger(__name__)


@contextmanager
def build_lock(root: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the right to build the table in this folder.

    Args:
        root: Folder of the table, path or URI.
        waiting: Called about twice a second for as long as another process builds it.

    Raises:
        NotWritableError: If the folder cannot be written to.
    """
    filesystem, folder = storage.open_root(root)
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    with _file_lock(folder, waiting) if is_local else _claim(filesystem, folder, waiting) as is_alone:
        for name in storage.list_files(filesystem, folder) if is_alone else ():
            if storage.is_partial(name):
                # Left by a builder that was killed.
                filesystem.delete_file(f"{folder}/{name}")
        yield


@contextmanager
def _file_lock(folder: str, waiting: Callable[[], None]) -> Iterator[bool]:
    """Whether the lock is held; it is not where the disk has none."""
    lock = FileLock(Path(folder) / LOCK)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with suppress(NotImplementedError):
            while not _acquired(lock):
                waiting()
    except OSError as error:
        raise NotWritableError(
            f"{folder} cannot be written to ({error.strerror}); correct the rights or make room, and run "
            "the same command again"
        ) from error
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=_POLL_SECONDS)
    except Timeout:
        return False
    return True


@contextmanager
def _claim(filesystem: fs.FileSystem, folder: str, waiting: Callable[[], None]) -> Iterator[bool]:
    own = f"{CLAIM}{uuid.uuid4().hex}"
    seen: dict[str, tuple[int, float]] = {}
    while True:
        if _others(filesystem, folder, own, seen):
            waiting()
        else:
            _write(filesystem, f"{folder}/{own}")
            # Written first, looked second: of two who claim at once, one at least sees the other.
            if not _others(filesystem, folder, own, seen):
                break
            filesystem.delete_file(f"{folder}/{own}")
        time.sleep(_POLL_SECONDS * random.uniform(0.5, 1.5))
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(filesystem, f"{folder}/{own}", ended), daemon=True)
    renewing.start()
    try:
        yield True
    finally:
        ended.set()
        renewing.join()
        filesystem.delete_file(f"{folder}/{own}")


def _others(filesystem: fs.FileSystem, folder: str, own: str, seen: dict[str, tuple[int, float]]) -> bool:
    """Whether others hold a claim.

    Args:
        filesystem: Where the folder is.
        folder: Folder of the table.
        own: Name of the claim that does not count.
        seen: What each claim was when it was last seen to change, and when that was; is kept up to date.
            Nobody's clock is compared with another's.
    """
    is_held = False
    for name, changed in storage.list_files(filesystem, folder).items():
        if not name.startswith(CLAIM) or name == own:
            continue
        if name not in seen or seen[name][0] != changed:
            seen[name] = changed, time.monotonic()
        if time.monotonic() - seen[name][1] < _CLAIM_SECONDS:
            is_held = True
        else:
            # Others who wait may have been quicker.
            with suppress(FileNotFoundError):
                filesystem.delete_file(f"{folder}/{name}")
    return is_held


def _renew(filesystem: fs.FileSystem, path: str, ended: threading.Event) -> None:
    while not ended.wait(_RENEWAL_SECONDS):
        try:
            _write(filesystem, path)
        except NotWritableError as error:
            _LOGGER.warning("others may begin to build the same: %s", error)


def _write(filesystem: fs.FileSystem, path: str) -> None:
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"a builder is at work\n")
    except OSError as error:
        raise NotWritableError(
            f"{path} could not be written: {error}. Correct the rights and run the same command again"
        ) from error
