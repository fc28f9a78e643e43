"""How a worker takes part in its run: through Ray Train, or alone in its own process."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device

from data_catalog.storage import filesystems
from experiments.run import checkpoints
from experiments.run.checkpoints import Checkpoint
from experiments.run.run_folder import RunFolder
from experiments.run.stop_request import StopRequest
from experiments.tracking.journal import Event


class Session(Protocol):
    """How a worker takes part in its run.

    Attributes:
        rank: Number of this worker.
        world_size: How many there are.
        threads: CPUs that it may use.
        device: Where it computes.
        stop_request: What the first worker looks for after each step.
    """

    rank: int
    world_size: int
    threads: int
    device: torch.device
    stop_request: StopRequest

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        """The folder of the checkpoint to continue from; None where the run begins."""
        ...

    def report(self, facts: Event, checkpoint: Checkpoint | None = None) -> None:
        """Report what happened; all workers report the same, in the same order.

        Args:
            facts: `event`, its name, and what belongs to it.
            checkpoint: What is to be kept; None without one, or on another worker than the first. It is
                written behind training, and then the journal gets the report with `weights`, their digest.
        """
        ...

    def wait(self) -> None:
        """Wait until the checkpoint that was reported last is written; raises what kept it from that."""
        ...

    def agree(self, wish: int) -> int:
        """The first worker's wish, on all workers; each of them calls this equally often."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, in the order of their ranks, on each of them."""
        ...


class RayTrainSession:
    """A worker among those that Ray Train started.

    Args:
        threads: CPUs that it may use.
        earlier: Folder or URI of the checkpoint of an earlier start, which Ray Train does not know; or None.
        stop_request: What may ask it to stop.
    """

    def __init__(self, threads: int, earlier: str | None, stop_request: StopRequest) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.threads = threads
        self.device = get_device()
        self.earlier = earlier
        self._storage = context.get_storage()
        self.stop_request = stop_request
        self._written: Future[None] | None = None
        # What workers agree on is in the host's memory: in a group of its own no GPU waits for it.
        self._group: Any = dist.new_group(backend="gloo") if self.world_size > 1 else None

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

    def report(self, facts: Event, checkpoint: Checkpoint | None = None) -> None:
        """As in `Session`; `JournalCallback` writes it into the journal."""
        storage = self._storage
        if checkpoint is None:
            ray.train.report(facts, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        written: Future[None] = Future()
        self._written = written

        def write(_: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            if written.done():
                # Ray Train tries again what looks like a fault of S3; `store` has waited for that already.
                written.result()
            path = storage.build_checkpoint_path_from_name(name)
            try:
                checkpoint.store(storage.storage_filesystem, path)
                # Ray Train sends the report when this function is done.
                facts["weights"] = checkpoint.weights_digest()
            except BaseException as error:
                written.set_exception(error)
                raise
            written.set_result(None)
            return ray.train.Checkpoint(path, storage.storage_filesystem)

        ray.train.report(
            facts,
            checkpoint=ray.train.Checkpoint(storage.experiment_fs_path, storage.storage_filesystem),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,
        )

    def wait(self) -> None:
        """As in `Session`; Ray Train itself waits for the last one."""
        if self._written is not None:
            self._written.result()

    def agree(self, wish: int) -> int:
        """As in `Session`."""
        if self._group is None:
            return wish
        agreed = torch.tensor(wish)
        dist.broadcast(agreed, 0, group=self._group)
        return int(agreed)

    def gather(self, value: Any) -> list[Any]:
        """As in `Session`."""
        values = [value] * self.world_size
        if self._group is not None:
            dist.all_gather_object(values, value, group=self._group)
        return values


class OwnProcessSession:
    """The only worker of a run, in the process that asks for it: a trial of a study.

    Args:
        folder: The run's.
        threads: CPUs that it may use.
        device: Where it computes.
        on_report: Called with each report once the journal has it, in the thread that reports.
        earlier: Folder or URI of the checkpoint to continue from; or None.
        stop_request: What may ask it to stop; None for nothing but a request beside the run's checkpoints.
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
        stop_request: StopRequest | None = None,
    ) -> None:
        self.folder = folder
        self.threads = threads
        self.device = device
        self.on_report = on_report
        self.stop_request = stop_request or StopRequest(folder.checkpoints)
        self.earlier = earlier
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._written: Future[Event] | None = None

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        """As in `Session`."""
        return checkpoints.fetched(self.earlier) if self.earlier else nullcontext()

    def report(self, facts: Event, checkpoint: Checkpoint | None = None) -> None:
        """As in `Session`; written into the journal here."""
        self.wait()
        if checkpoint is not None:
            self._written = self._writer.submit(self._store, facts, checkpoint)
            return
        self.folder.journal.record(facts, None)
        self.on_report(facts)

    def wait(self) -> None:
        """As in `Session`."""
        written, self._written = self._written, None
        if written is not None:
            self.on_report(written.result())

    def agree(self, wish: int) -> int:
        """As in `Session`."""
        return wish

    def gather(self, value: Any) -> list[Any]:
        """As in `Session`."""
        return [value]

    def _store(self, facts: Event, checkpoint: Checkpoint) -> Event:
        kind = "step" if "step" in facts else facts["event"]
        name = f"checkpoint_{kind}_{facts.get('step', 0):08d}"
        with self.folder.journal.guarded():
            # A new start that has taken over writes checkpoints of the same names.
            checkpoint.store(*filesystems.open_root(self.folder.checkpoints.file(name)))
        facts["weights"] = checkpoint.weights_digest()
        self.folder.journal.record(facts, self.folder.stored_checkpoint(name))
        self.folder.delete_old_checkpoints()
        return facts
