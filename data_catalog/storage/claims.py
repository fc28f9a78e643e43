"""The right to write: one process at a time builds a table, trains a run, or runs a study.

On a local or shared disk the right is a lock of the operating system on the file `.lock` in the folder. The
system releases it when its holder ends, however that happens, so a killed process blocks nobody.

Object storage has no such lock, nor have some shared disks. There the holder writes a claim: an object of
its own, which it rewrites every few seconds. A claim that is no longer rewritten was left by a killed
process, and whoever waits removes it. A holder that is suspended for longer than that, or does not reach the
storage, can lose its claim and then go on beside its successor. Tables tolerate this, since both write the
same bytes to the same names; who writes anything else asks `Claim.check` before.
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
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pyarrow import fs

from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.storage import filesystems
from data_catalog.storage.patience import checking

LOCK = ".lock"
CLAIM = ".claim-"
EXPIRY_SECONDS = 30.0
_RENEWALS_PER_EXPIRY = 6
_LOCK_POLL_SECONDS = 0.1
_CLAIM_POLL_SECONDS = 0.5
_LONGEST_CLAIM_POLL_SECONDS = 8.0

_LOGGER = logging.getLogger(__name__)


class ClaimedError(CatalogError):
    """Another process holds the right to write."""


class LostClaimError(CatalogError):
    """Another process has taken the right to write over."""


@dataclass(frozen=True)
class Claim:
    """The right to write, held by this process; can be sent to another one that writes for it.

    Attributes:
        location: Path or URI of the claim; None for a lock, which nobody can take over.
    """

    location: str | None

    def check(self) -> None:
        """Make sure that the right is still held.

        Raises:
            LostClaimError: It is not.
        """
        if self.location is None or filesystems.exists(*filesystems.open_root(self.location)):
            return
        folder = filesystems.presentable_uri(self.location).rpartition("/")[0]
        raise LostClaimError(
            f"another process has taken over {folder}, which this one could not reach for some time; what "
            "was stored until then is kept, and the other process goes on with it"
        )

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Make sure that the right is held when a block begins, and before it repeats a request.

        Raises:
            LostClaimError: It is not.
        """
        self.check()
        with checking(self.check):
            yield


@contextmanager
def claim(
    root: str | Path, *, wait: Callable[[], bool] | None = None, expiry_seconds: float = EXPIRY_SECONDS
) -> Iterator[Claim]:
    """Hold the right to write in a folder.

    Args:
        root: The folder, path or URI; it is made if it does not exist.
        wait: Called every half second or more often while another process holds the right; waiting ends when
            it returns False. None does not wait, except until it is seen whether the holder of a claim is
            alive: it renews the claim, or the claim expires.
        expiry_seconds: How long a claim counts if it is not renewed; all processes that use the folder need
            the same value.

    Raises:
        ClaimedError: If another process holds the right.
        NotWritableError: If the folder cannot be written to.
    """

    def gives_up(is_alive: bool) -> bool:
        return is_alive and (wait is None or not wait())

    with _right(root, gives_up, expiry_seconds) as held:
        if held is None:
            raise ClaimedError(
                f"{filesystems.presentable_uri(str(root))} is being written by another process; wait for it, "
                "then run the same command again"
            )
        yield held


@contextmanager
def claim_unless(root: str | Path, is_done: Callable[[], bool]) -> Iterator[bool]:
    """Hold the right to write in a folder, unless another process finishes the same task first.

    Args:
        root: As in `claim`.
        is_done: Called every half second or more often while another process holds the right; waiting ends
            when it returns True.

    Yields:
        Whether the right is held.

    Raises:
        NotWritableError: If the folder cannot be written to.
    """
    with _right(root, lambda is_alive: is_done(), EXPIRY_SECONDS) as held:
        yield held is not None


@contextmanager
def _right(
    root: str | Path, gives_up: Callable[[bool], bool], expiry_seconds: float
) -> Iterator[Claim | None]:
    """Hold the right to write, or give None where the caller gives up first.

    Args:
        root: As in `claim`.
        gives_up: Called every half second or more often while another process holds the right, with whether
            that process is known to be alive.
        expiry_seconds: As in `claim`.
    """
    filesystem, folder = filesystems.open_root(root)
    if isinstance(filesystem, fs.LocalFileSystem) and _has_locks(folder):
        # The operating system releases the lock of a process that has ended.
        with _locked(folder, lambda: gives_up(True)) as is_held:
            yield Claim(None) if is_held else None
    else:
        with _claimed(root, gives_up, expiry_seconds) as held:
            yield held


def _has_locks(folder: str) -> bool:
    """Whether the disk has locks of the operating system; makes the folder if it does not exist."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            return False
        raise NotWritableError(
            f"{folder} cannot be written to ({error.strerror}); correct the rights or make room, and run the "
            "same command again"
        ) from error
    return True


@contextmanager
def _locked(folder: str, is_done: Callable[[], bool]) -> Iterator[bool]:
    lock = FileLock(Path(folder) / LOCK)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_LOCK_POLL_SECONDS)
        except Timeout:
            if is_done():
                break
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def _claimed(
    root: str | Path, gives_up: Callable[[bool], bool], expiry_seconds: float
) -> Iterator[Claim | None]:
    filesystem, folder = filesystems.open_root(root)
    own = f"{CLAIM}{uuid.uuid4().hex}"
    others = _OtherClaims(filesystem, folder, own, expiry_seconds)
    poll_seconds = _CLAIM_POLL_SECONDS
    while True:
        if others.hold():
            if gives_up(others.are_alive):
                yield None
                return
        else:
            _write(filesystem, f"{folder}/{own}")
            # Look only after writing: of two who claim at once, at least one then sees the other.
            if not others.hold():
                break
            _remove(filesystem, f"{folder}/{own}")
            if gives_up(others.are_alive):
                yield None
                return
            # The more processes compete, the further apart their attempts must be.
            poll_seconds = min(2 * poll_seconds, _LONGEST_CLAIM_POLL_SECONDS)
        time.sleep(poll_seconds * random.uniform(0.5, 1.5))
    held, ended = Claim(filesystems.join(root, own)), threading.Event()
    renewing = threading.Thread(target=_renew, args=(held, expiry_seconds, ended), daemon=True)
    renewing.start()
    try:
        yield held
    finally:
        ended.set()
        renewing.join()
        _remove(filesystem, f"{folder}/{own}")


class _OtherClaims:
    """The claims of other processes on a folder.

    No clock is compared with that of another machine: a claim counts for so long after its modification time
    was first seen here.

    Args:
        filesystem: Where the folder is.
        folder: The folder.
        own: Name of the claim that does not count.
        expiry_seconds: How long a claim counts if it is not renewed.

    Attributes:
        are_alive: Whether one of them was renewed while this process looked.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, own: str, expiry_seconds: float) -> None:
        self.filesystem = filesystem
        self.folder = folder
        self.own = own
        self.expiry_seconds = expiry_seconds
        self.are_alive = False
        self._seen: dict[str, tuple[int, float]] = {}

    def hold(self) -> bool:
        """Whether others hold a claim now; removes those that expired."""
        known, self._seen = self._seen, {}
        asked = time.monotonic()
        files = filesystems.list_files(self.filesystem, self.folder)
        # Nobody can renew a claim in storage that is away.
        away_seconds = time.monotonic() - asked
        for name, modified in files.items():
            if not name.startswith(CLAIM) or name == self.own:
                continue
            before, since = known.get(name, (modified, asked))
            since += away_seconds
            if before != modified:
                since = time.monotonic()
                self.are_alive = True
            if time.monotonic() - since < self.expiry_seconds:
                self._seen[name] = modified, since
            else:
                _remove(self.filesystem, f"{self.folder}/{name}")
        # Nobody is known to live once all claims have gone.
        self.are_alive = self.are_alive and bool(self._seen)
        return bool(self._seen)


def _remove(filesystem: fs.FileSystem, path: str) -> None:
    try:
        filesystem.delete_file(path)
    except FileNotFoundError:
        # Another waiting process removed it first, or took the claim for an expired one.
        return
    except OSError as error:
        # What the claim protected is complete, and others will notice that the claim expires.
        _LOGGER.warning("%s could not be deleted: %s", path, error)


def _renew(held: Claim, expiry_seconds: float, ended: threading.Event) -> None:
    """Renew a claim until its holder has ended, or another process has taken it over."""
    assert held.location is not None
    filesystem, path = filesystems.open_root(held.location)
    interval_seconds = expiry_seconds / _RENEWALS_PER_EXPIRY
    renewed = checked = time.monotonic()

    def check() -> None:
        nonlocal checked
        held.check()
        checked = time.monotonic()

    while not ended.wait(interval_seconds):
        try:
            check()
            with checking(check):
                _write(filesystem, path)
        except LostClaimError:
            # Whoever writes is told so, too.
            return
        except CatalogError as error:
            _LOGGER.warning("another process may take over the claim: %s", error)
            continue
        now = time.monotonic()
        if now - checked > interval_seconds and now - renewed > expiry_seconds:
            # This process was suspended in between. Another one may have taken the claim over, which is back.
            _remove(filesystem, path)
            return
        renewed = checked


def _write(filesystem: fs.FileSystem, path: str) -> None:
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"claimed\n")
    except OSError as error:
        raise NotWritableError(
            f"{path} could not be written: {error}. Correct the rights and run the same command again"
        ) from error
