"""Inputs, weights and outputs measured on the released modules."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def weights(arrays: dict[str, Tensor], leave_out: str = "adapter") -> dict[str, Tensor]:
    return {
        key.removeprefix("w."): value
        for key, value in arrays.items()
        if key.startswith("w.") and leave_out not in key
    }
