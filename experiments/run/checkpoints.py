"""Checkpoints: a folder with the model's weights as safetensors, the optimiser's state, and their digests.

There is no generator state: every random number is a function of seed, epoch and step.
"""

import errno
import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs, parquet
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy
from safetensors.torch import load_file, save_file

from data_catalog.errors import DamagedFileError
from data_catalog.storage import filesystems
from experiments.run.progress import Progress
from experiments.run.run_result import RunError
from experiments.tracking.journal import Event
from stmi.checkpoint_files import (
    EMBEDDINGS_FILE,
    HISTORY_FILE,
    MODEL_FILE,
    QUERIES_FILE,
    REPORTED_FILE,
    TRAINING_FILE,
)
from stmi.checksums import SUMS_FILE, find_change, write_sums
from stmi.clip.weights import load_strictly
from stmi.model import STMI

PARTIAL = ".partial"
"""At the end of the name of a folder on a disk until the checkpoint is complete."""
FORMAT = 2
"""Format of `TRAINING_FILE`. The first one has no number, and holds no part of an epoch."""


@dataclass(frozen=True)
class Best:
    """The best epoch so far, by what the config reports.

    Attributes:
        epoch: From 1.
        value: Its mAP.
        weights: The model's, on the CPU; None on workers that write no checkpoint.
    """

    epoch: int
    value: float
    weights: dict[str, torch.Tensor] | None


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, in memory: training may go on while it is written.

    Attributes:
        model: The model's weights, on the CPU.
        training: The optimiser's state and the progress, on the CPU.
        queries: How the test queries ranked so far, a table for each test.
        best: The best epoch so far, where the config reports it.
        history: What the run reported so far.
        embeddings: Embeddings of the test view, by feature: in the last checkpoint of a run.
    """

    model: dict[str, torch.Tensor]
    training: dict[str, Any]
    queries: list[pa.Table]
    best: Best | None
    history: list[Event]
    embeddings: dict[str, np.ndarray] | None = None

    def weights_digest(self) -> str:
        """Hex SHA-256 of the model's weights."""
        return digest_weights(self.model)

    def write(self, folder: Path) -> None:
        """Write its files into a folder that exists."""
        save_file(self.model, folder / MODEL_FILE)
        torch.save(self.training, folder / TRAINING_FILE)
        queries = pa.concat_tables(self.queries)
        parquet.write_table(queries, folder / QUERIES_FILE, compression="zstd", write_page_checksum=True)
        if self.best is not None:
            assert self.best.weights is not None
            facts = {"epoch": str(self.best.epoch), "value": repr(self.best.value)}
            save_file(self.best.weights, folder / REPORTED_FILE, metadata=facts)
        (folder / HISTORY_FILE).write_text(json.dumps(self.history), encoding="utf-8")
        if self.embeddings is not None:
            rows = {name: np.ascontiguousarray(values) for name, values in self.embeddings.items()}
            safetensors_numpy.save_file(rows, folder / EMBEDDINGS_FILE)
        write_sums(folder)

    def store(self, filesystem: fs.FileSystem, path: str) -> None:
        """Write it to where it is kept; on a disk its folder is complete or absent.

        Raises:
            NotWritableError: The disk is full, or it cannot be written to.
        """
        with writing(path):
            if isinstance(filesystem, fs.LocalFileSystem):
                self._store_on_disk(Path(path), Path(path + PARTIAL))
                return
            # Object stores move no folders; there a checkpoint counts once the journal names it.
            with tempfile.TemporaryDirectory() as folder:
                self.write(Path(folder))
                filesystems.delete_folder(filesystem, path)
                fs.copy_files(folder, path, destination_filesystem=filesystem)

    def _store_on_disk(self, path: Path, partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self.write(partial)
        except BaseException:
            # The disk may be full; what is left needs the room.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)


def digest_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 of weights on the CPU: their names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_best(folder: Path) -> Best | None:
    """The best epoch when a checkpoint was written, or None where it has none."""
    path = folder / REPORTED_FILE
    if not path.exists():
        return None
    with reading(path), safe_open(path, "pt") as file:
        facts = file.metadata()
        weights = {name: file.get_tensor(name) for name in list(file.keys())}
    return Best(int(facts["epoch"]), float(facts["value"]), weights)


def take(
    model: STMI, optimizer: torch.optim.Optimizer, progress: Progress
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Copy a model, its optimiser and the progress to memory: the first two fields of a `Checkpoint`."""
    weights = {name: host_copy(value).contiguous() for name, value in model.state_dict().items()}
    training = {"format": FORMAT, "optimizer": optimizer.state_dict(), **progress.state()}
    return weights, host_copy(training)


def host_copy(tree: Any) -> Any:
    """A copy of a tree of dicts, lists and tensors, with its tensors in the host's memory."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {name: host_copy(value) for name, value in tree.items()}
    return [host_copy(value) for value in tree] if isinstance(tree, list) else tree


def load(folder: Path, model: STMI, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Load a checkpoint's weights, and the optimiser's state where an optimiser is given.

    Raises:
        stmi.clip.weights.ClipFileError: The weights are not those of this model; names which.
        DamagedFileError: A file is damaged; so in the other functions that load.
        RunError: Newer code wrote it.
    """
    # To the host first: a GPU has no room for everything twice.
    with reading(folder / MODEL_FILE):
        weights = load_file(folder / MODEL_FILE)
    load_strictly(model, weights, folder / MODEL_FILE)
    with reading(folder / TRAINING_FILE):
        training = torch.load(folder / TRAINING_FILE, map_location="cpu", weights_only=True)
    if (written := training.get("format", 1)) > FORMAT:
        raise RunError(
            f"{folder / TRAINING_FILE} has format {written}, written by newer code; this code reads formats "
            f"up to {FORMAT}, so continue the run with the newer one"
        )
    if optimizer is not None:
        optimizer.load_state_dict(training["optimizer"])
    return Progress.of(training)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context in which a file of a checkpoint is read.

    Raises:
        DamagedFileError: It is damaged. Errors of a disk or of memory are none: they may pass.
    """
    remedy = (
        "the same command lets an unfinished run go on from the checkpoint before it; else restore it from a "
        "copy, or move the run's folder away and train it anew"
    )
    if (change := find_change(path, path.with_name(SUMS_FILE))) is not None:
        raise DamagedFileError(path, change, remedy)
    try:
        yield
    except FileNotFoundError:
        raise DamagedFileError(path, "it is missing", remedy) from None
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError) as error:
        # Arrow's error about a damaged page is an OSError, too, but none of the system's.
        if getattr(error, "errno", None) is not None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise DamagedFileError(path, " ".join(str(error).split())[:200], remedy) from error


@contextmanager
def writing(location: str) -> Iterator[None]:
    """Context in which a checkpoint is written.

    Args:
        location: Where it goes.

    Raises:
        NotWritableError: The disk is full, or it cannot be written to.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise filesystems.not_written(location, error) from error
    except RuntimeError as error:
        # PyTorch's writer says no more than that the file is too short.
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise filesystems.not_written(location, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file of a checkpoint, by name.

    Raises:
        DamagedFileError: It is damaged.
    """
    with reading(path):
        return safetensors_numpy.load_file(path)


@contextmanager
def fetched(location: str) -> Iterator[Path]:
    """A checkpoint as a local folder: itself, or a copy for as long as it is needed.

    Args:
        location: Folder or URI.
    """
    if "://" not in location:
        yield Path(location)
        return
    filesystem, path = filesystems.open_root(location)
    with tempfile.TemporaryDirectory() as copy:
        fs.copy_files(path, copy, source_filesystem=filesystem)
        yield Path(copy)


def load_history(folder: Path) -> list[Event]:
    """What the run had reported when the checkpoint was written."""
    with reading(folder / HISTORY_FILE):
        return json.loads((folder / HISTORY_FILE).read_text(encoding="utf-8"))


def load_queries(folder: Path) -> pa.Table:
    """How the test queries had ranked when the checkpoint was written."""
    with reading(folder / QUERIES_FILE):
        return parquet.read_table(folder / QUERIES_FILE)
