"""One builder at a time: whoever wants a table that is being built waits for it.

On a local (or shared) disk the lock is that of the operating system on a file in the table's folder. It
goes with the process that holds it, however that ends, so a builder that was killed blocks nobody.

Object storage has no such lock, and needs none to be right: two builders do the work twice, write the same
shards under the same names, each whole, and the same digest into the manifest; whoever is last wins and
nothing changes. The same holds on a disk whose filesystem refuses locks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pyarrow import fs

from data_catalog import storage
from data_catalog.errors import NotWritableError

LOCK = ".lock"
_POLL_SECONDS = 0.5


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
    lock = None
    if isinstance(filesystem, fs.LocalFileSystem):
        lock = FileLock(Path(folder) / LOCK)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            _acquire(lock, waiting)
            for partial in Path(folder).glob(storage.PARTIAL.format(name="*", unique="*")):
                # Left by a builder that was killed; nobody else writes here while the lock is held.
                partial.unlink()
        except NotImplementedError:
            lock = None
        except OSError as error:
            raise NotWritableError(
                f"{folder} cannot be written to ({error.strerror}); correct the rights or make room, and run "
                "the same command again"
            ) from error
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquire(lock: FileLock, waiting: Callable[[], None]) -> None:
    while True:
        try:
            lock.acquire(timeout=_POLL_SECONDS)
        except Timeout:
            waiting()
        else:
            return
