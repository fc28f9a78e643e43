"""Checkpoints: a folder with the model's weights as safetensors, the optimiser's state, and their digests.

There is no generator state: every random number is a function of seed, epoch and step.
"""

import errno
import json
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs, parquet
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy
from safetensors.torch import load_file, save_file

from data_catalog.errors import DamagedFileError
from data_catalog.storage import filesystems
from experiments.tracking.journal import Event
from stmi.checksums import SUMS_FILE, find_change
from stmi.clip.weights import load_strictly
from stmi.model import STMI
from stmi.stored_run import MODEL_FILE, REPORTED_FILE

TRAINING_FILE = "training.pt"
HISTORY_FILE = "history.json"
QUERIES_FILE = "queries.parquet"
"""How every test query ranked at each epoch that was tested: `evaluation.QUERY_SCHEMA` and `epoch`."""
EMBEDDINGS_FILE = "test_embeddings.safetensors"
"""In the last checkpoint of a finished run: every retrieval feature of the test view's rows."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        epoch: Epochs done.
        step: Optimisation steps done.
    """

    epoch: int = 0
    step: int = 0


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


def save_best(folder: Path, best: Best) -> None:
    """Write the weights of the best epoch so far into a checkpoint."""
    assert best.weights is not None
    facts = {"epoch": str(best.epoch), "value": repr(best.value)}
    save_file(best.weights, folder / REPORTED_FILE, metadata=facts)


def load_best(folder: Path) -> Best | None:
    """The best epoch when a checkpoint was written, or None where it has none."""
    path = folder / REPORTED_FILE
    if not path.exists():
        return None
    with reading(path), safe_open(path, "pt") as file:
        facts = file.metadata()
        weights = {name: file.get_tensor(name) for name in list(file.keys())}
    return Best(int(facts["epoch"]), float(facts["value"]), weights)


def save(folder: Path, model: STMI, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint into a folder that exists."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / MODEL_FILE)
    training = {"optimizer": optimizer.state_dict(), "epoch": progress.epoch, "step": progress.step}
    torch.save(training, folder / TRAINING_FILE)


def load(folder: Path, model: STMI, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Load a checkpoint's weights, and the optimiser's state where an optimiser is given.

    Raises:
        stmi.clip.weights.ClipFileError: The weights are not those of this model; names which.
        DamagedFileError: A file is damaged; so in the other functions that load.
    """
    device = next(model.parameters()).device
    with reading(folder / MODEL_FILE):
        weights = load_file(folder / MODEL_FILE, device=str(device))
    load_strictly(model, weights, folder / MODEL_FILE)
    with reading(folder / TRAINING_FILE):
        training = torch.load(folder / TRAINING_FILE, map_location=device, weights_only=True)
    if optimizer is not None:
        optimizer.load_state_dict(training["optimizer"])
    return Progress(training["epoch"], training["step"])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Meanwhile a file of a checkpoint is read.

    Raises:
        DamagedFileError: It is damaged.
    """
    remedy = "restore it from a copy, or move the run's folder away and train it anew"
    if (change := find_change(path, path.with_name(SUMS_FILE))) is not None:
        raise DamagedFileError(path, change, remedy)
    try:
        yield
    except FileNotFoundError:
        raise DamagedFileError(path, "it is missing", remedy) from None
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError) as error:
        raise DamagedFileError(path, " ".join(str(error).split())[:200], remedy) from error


@contextmanager
def writing(location: str) -> Iterator[None]:
    """Meanwhile a checkpoint is written.

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


def save_history(folder: Path, history: list[Event]) -> None:
    """Write what a run reported so far beside its weights."""
    (folder / HISTORY_FILE).write_text(json.dumps(history), encoding="utf-8")


def load_history(folder: Path) -> list[Event]:
    """What the run had reported when the checkpoint was written."""
    with reading(folder / HISTORY_FILE):
        return json.loads((folder / HISTORY_FILE).read_text(encoding="utf-8"))


def save_queries(folder: Path, queries: list[pa.Table]) -> None:
    """Write how the test queries ranked so far, a table for each test."""
    parquet.write_table(
        pa.concat_tables(queries), folder / QUERIES_FILE, compression="zstd", write_page_checksum=True
    )


def load_queries(folder: Path) -> pa.Table:
    """How the test queries had ranked when the checkpoint was written."""
    with reading(folder / QUERIES_FILE):
        return parquet.read_table(folder / QUERIES_FILE)
