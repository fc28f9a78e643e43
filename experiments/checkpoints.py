"""Checkpoints: a folder with the model's weights as safetensors and the optimiser's state.

There is no generator state: every random draw is a function of seed, epoch and step.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stmi.clip import load_strictly
from stmi.model import STMI

MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.pt"
HISTORY_FILE = "history.json"
EMBEDDINGS_FILE = "test_embeddings.safetensors"
"""In the last checkpoint of a finished run: every retrieval feature of the test view's rows."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Epochs done.
        step: Optimisation steps done.
    """

    epoch: int = 0
    step: int = 0


def save(folder: Path, model: STMI, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint into a folder that exists."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / MODEL_FILE)
    training = {"optimizer": optimizer.state_dict(), "epoch": progress.epoch, "step": progress.step}
    torch.save(training, folder / TRAINING_FILE)


def load(folder: Path, model: STMI, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Put a checkpoint's weights, and the optimiser's state where one is given, back.

    Raises:
        stmi.clip.ClipFileError: The weights are not those of this model; names which.
    """
    device = next(model.parameters()).device
    load_strictly(model, load_file(folder / MODEL_FILE, device=str(device)), folder / MODEL_FILE)
    training = torch.load(folder / TRAINING_FILE, map_location=device, weights_only=True)
    if optimizer is not None:
        optimizer.load_state_dict(training["optimizer"])
    return Progress(training["epoch"], training["step"])


def save_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write what a run reported so far beside its weights."""
    (folder / HISTORY_FILE).write_text(json.dumps(history), encoding="utf-8")


def load_history(folder: Path) -> list[dict[str, Any]]:
    """What the run had reported when the checkpoint was written."""
    return json.loads((folder / HISTORY_FILE).read_text(encoding="utf-8"))
