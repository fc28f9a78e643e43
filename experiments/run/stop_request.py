"""SIGTERM in training: the driver asks the workers of its run or study to store a checkpoint and end.

A scheduler sends it where time is up: Slurm at a job's time limit, `ray job stop`, Kubernetes, a spot node.
The request is a file beside the run's checkpoints, or in the study's folder, which every worker reaches,
wherever it runs.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType

from data_catalog.errors import CatalogError
from data_catalog.storage.folders import Folder
from data_catalog.storage.patience import without_patience
from experiments.tracking.polling import polling

STOP_FILE = "stop-requested"
LOOK_SECONDS = 0.2
REMOTE_LOOK_SECONDS = 2.0
"""In object storage each look is a request."""


class StopRequestedError(Exception):
    """The first worker has seen the request; all workers of the run raise it at the same place."""


@contextmanager
def stopping_on_sigterm(folder: Folder) -> Iterator[None]:
    """Context in which the first SIGTERM leaves a request to stop in a folder.

    It is the folder of a run's checkpoints, or a study's. The second SIGTERM, or the first where the storage
    of the folder is away, does what SIGTERM did before.
    Only a process's main thread can answer signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        try:
            with without_patience():
                folder.write(STOP_FILE, b"")
        except CatalogError:
            signal.raise_signal(number)

    # A driver that was killed may have left one.
    folder.delete_file(STOP_FILE)
    before = signal.signal(signal.SIGTERM, ask) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        # Where the storage is away, the next start removes it.
        with suppress(CatalogError):
            folder.delete_file(STOP_FILE)


class StopRequest:
    """What a worker sees of the request.

    Args:
        *folders: Where it may be: of the run's checkpoints, and that of the study to which the run belongs.

    Attributes:
        is_made: Whether it was seen.
    """

    def __init__(self, *folders: Folder) -> None:
        self.folders = folders
        self.is_made = False

    def watched(self) -> AbstractContextManager[None]:
        """Context in which another thread looks for it."""
        is_local = all(folder.is_local for folder in self.folders)
        return polling(self.look, LOOK_SECONDS if is_local else REMOTE_LOOK_SECONDS, final_call=False)

    def look(self) -> None:
        """Look for it now."""
        self.is_made = self.is_made or any(folder.has_file(STOP_FILE) for folder in self.folders)
