"""How a worker takes part in its run: through Ray Train, or alone in its own process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import ray.train
import torch
from pyarrow import fs
from ray.train.torch import get_device

from data_catalog.storage import filesystems
from data_catalog.storage.folders import Folder
from experiments.run import checkpoints
from experiments.run.run_folder import KEPT_CHECKPOINTS, RunFolder
from experiments.tracking.journal import Event


class Session(Protocol):
    """How a worker takes part in its run.

    Attributes:
        rank: Number of this worker.
        world_size: How many there are.
        threads: CPUs that it may use.
        device: Where it computes.
    """

    rank: int
    world_size: int
    threads: int
    device: torch.device

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        """The folder of the checkpoint to continue from; None where the run begins."""
        ...

    def report(self, facts: Event, checkpoint: Path | None) -> None:
        """Report what happened.

        Args:
            facts: `event`, its name, and what belongs to it.
            checkpoint: A folder whose files are to be kept; None without one, or on another worker than the
                first.
        """
        ...


class RayTrainSession:
    """A worker among those that Ray Train started.

    Args:
        threads: CPUs that it may use.
        earlier: Folder or URI of the checkpoint of an earlier start, which Ray Train does not know; or None.
    """

    def __init__(self, threads: int, earlier: str | None) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.threads = threads
        self.device = get_device()
        self.earlier = earlier

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """As in `Session`."""
        stored = ray.train.get_checkpoint()
        if stored is None:
            with checkpoints.fetched(self.earlier) if self.earlier else nullcontext() as folder:
                yield folder
            return
        with stored.as_directory() as name:
            yield Path(name)

    def report(self, facts: Event, checkpoint: Path | None) -> None:
        """As in `Session`; `JournalCallback` writes it into the journal."""
        stored = ray.train.Checkpoint.from_directory(checkpoint) if checkpoint else None
        with checkpoints.writing(ray.train.get_context().get_storage().experiment_fs_path):
            ray.train.report(facts, checkpoint=stored)


class OwnProcessSession:
    """The only worker of a run, in the process that asks for it: a trial of a study.

    Args:
        folder: The run's.
        threads: CPUs that it may use.
        device: Where it computes.
        on_report: Called with each report once the journal has it.
        earlier: Folder or URI of the checkpoint to continue from; or None.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        folder: RunFolder,
        threads: int,
        device: torch.device,
        on_report: Callable[[Event], None],
        earlier: str | None = None,
    ) -> None:
        self.folder = folder
        self.threads = threads
        self.device = device
        self.on_report = on_report
        self.earlier = earlier

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        """As in `Session`."""
        return checkpoints.fetched(self.earlier) if self.earlier else nullcontext()

    def report(self, facts: Event, checkpoint: Path | None) -> None:
        """As in `Session`; written into the journal here."""
        stored = None
        if checkpoint is not None:
            name = f"checkpoint_{facts['event']}_{facts.get('step', 0):08d}"
            location = self.folder.checkpoints.file(name)
            with checkpoints.writing(location):
                _store(checkpoint, location)
            stored = self.folder.stored_checkpoint(name)
        self.folder.journal.record(facts, stored)
        if stored is not None:
            self._delete_old()
        self.on_report(facts)

    def _delete_old(self) -> None:
        stored = [event["checkpoint"] for event in self.folder.journal.read() if event.get("checkpoint")]
        # Newest first. A checkpoint that was lost and written again counts as new.
        newest = list(dict.fromkeys(Folder(location).name for location in reversed(stored)))
        there = self.folder.checkpoints.list_folders()
        for name in set(newest[KEPT_CHECKPOINTS:]).intersection(there):
            _delete(*filesystems.open_root(self.folder.checkpoints.file(name)))


def _store(checkpoint: Path, location: str) -> None:
    """Copy a checkpoint's files to where it is kept; on a disk its folder is complete or absent."""
    filesystem, path = filesystems.open_root(location)
    # Object stores move no folders; there a checkpoint counts once the journal names it.
    written = f"{path}.partial" if isinstance(filesystem, fs.LocalFileSystem) else path
    _delete(filesystem, written)
    filesystem.create_dir(written, recursive=True)
    try:
        fs.copy_files(str(checkpoint), written, destination_filesystem=filesystem)
    except OSError:
        # The disk may be full; what is left needs the room.
        _delete(filesystem, written)
        raise
    if written != path:
        _delete(filesystem, path)
        filesystem.move(written, path)


def _delete(filesystem: fs.FileSystem, path: str) -> None:
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)
