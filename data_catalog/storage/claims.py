"""One builder at a time: whoever wants a table that is being built waits for it.

On a local (or shared) disk the lock is that of the operating system on a file in the table's folder. It
goes with the process that holds it, however that ends, so a builder that was killed blocks nobody.

Object storage has no such lock, nor have some shared disks, so there a builder lays a claim: an object of its
own, which it writes again every few seconds. A claim that does not change any more was left by a builder that
was killed, and whoever waits removes it.

Should two build at once all the same (the one was suspended for a minute), they write the same shards under
the same names, each whole, and the same digest into the manifest: whoever is last wins and nothing changes.
"""

import errno
import fcntl
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pyarrow import fs

from data_catalog.errors import NotWritableError
from data_catalog.storage import filesystems

LOCK = ".lock"
CLAIM = ".claim-"
_POLL_SECONDS = 0.5
_LONGEST_WINDOW_SECONDS = 8.0
_RENEWAL_SECONDS = 5.0
_CLAIM_SECONDS = 30.0
"""How long a claim holds that is not renewed."""

_LOGGER = logging.getLogger(__name__)


@contextmanager
def build_lock(root: str, is_built: Callable[[], bool]) -> Iterator[None]:
    """Hold the right to build the table in this folder, or find that another process has built it.

    Args:
        root: Folder of the table, path or URI.
        is_built: Called about twice a second for as long as another process builds it; once it says so, the
            right is not waited for any longer.

    Raises:
        NotWritableError: If the folder cannot be written to.
    """
    filesystem, folder = filesystems.open_root(root)
    has_locks = isinstance(filesystem, fs.LocalFileSystem) and _has_locks(folder)
    with _file_lock(folder, is_built) if has_locks else _claim(filesystem, folder, is_built) as is_alone:
        for name in filesystems.list_files(filesystem, folder) if is_alone else ():
            if filesystems.is_partial(name):
                # Left by a builder that was killed.
                _remove(filesystem, f"{folder}/{name}")
        yield


@contextmanager
def _file_lock(folder: str, is_built: Callable[[], bool]) -> Iterator[bool]:
    """Whether the lock is held; it is not where the table is built."""
    lock = FileLock(Path(folder) / LOCK)
    try:
        while not _acquired(lock) and not is_built():
            pass
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _has_locks(folder: str) -> bool:
    """Whether the disk has locks of the operating system; makes the folder where it is new."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            return False
        raise _not_writable(folder, error) from error
    return True


def _not_writable(folder: str, error: OSError) -> NotWritableError:
    return NotWritableError(
        f"{folder} cannot be written to ({error.strerror}); correct the rights or make room, and run the "
        "same command again"
    )


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=_POLL_SECONDS)
    except Timeout:
        return False
    return True


@contextmanager
def _claim(filesystem: fs.FileSystem, folder: str, is_built: Callable[[], bool]) -> Iterator[bool]:
    """Whether a claim is held; it is not where the table is built."""
    own = f"{CLAIM}{uuid.uuid4().hex}"
    seen: dict[str, tuple[int, float]] = {}
    window = _POLL_SECONDS
    while True:
        if _others(filesystem, folder, own, seen):
            if is_built():
                yield False
                return
        else:
            _write(filesystem, f"{folder}/{own}")
            # Written first, looked second: of two who claim at once, one at least sees the other.
            if not _others(filesystem, folder, own, seen):
                break
            _remove(filesystem, f"{folder}/{own}")
            # The more there are who want it, the wider must they spread.
            window = min(2 * window, _LONGEST_WINDOW_SECONDS)
        time.sleep(window * random.uniform(0.5, 1.5))
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(filesystem, f"{folder}/{own}", ended), daemon=True)
    renewing.start()
    try:
        yield True
    finally:
        ended.set()
        renewing.join()
        _remove(filesystem, f"{folder}/{own}")


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
    for name, changed in filesystems.list_files(filesystem, folder).items():
        if not name.startswith(CLAIM) or name == own:
            continue
        if name not in seen or seen[name][0] != changed:
            seen[name] = changed, time.monotonic()
        if time.monotonic() - seen[name][1] < _CLAIM_SECONDS:
            is_held = True
        else:
            _remove(filesystem, f"{folder}/{name}")
    return is_held


def _remove(filesystem: fs.FileSystem, path: str) -> None:
    try:
        filesystem.delete_file(path)
    except FileNotFoundError:
        # Others who wait were quicker, or took it for that of a builder that was killed.
        return
    except OSError as error:
        # What was done under the claim is done; the others find out that it is not renewed.
        _LOGGER.warning("%s could not be deleted: %s", path, error)


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
