"""Files of weights: read without executing anything, and loaded whole or not at all."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stmi.errors import ClipFileError


def read_weights(path: Path) -> dict[str, Tensor]:
    """All weights of a file, float32; nothing in the file is executed.

    Raises:
        ClipFileError: The file cannot be read as weights.
    """
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            content = content.get("state_dict", content)
        # A model that several processes trained may have a prefix before every name.
        return {name.removeprefix("module."): value.float() for name, value in content.items()}
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise ClipFileError(
            f"{path} cannot be read as weights ({' '.join(str(error).split())[:200]}); restore the file, or "
            "give a folder with safetensors (experiments/convert_clip.py makes one of OpenAI's archive)"
        ) from None


def load_strictly(
    module: nn.Module, weights: dict[str, Tensor], path: Path | str, assign: bool = False
) -> None:
    """Load all weights of a module, or none.

    Args:
        module: Where the weights go.
        weights: By name.
        path: Where they come from, for messages.
        assign: Make them the module's own instead of copying them, for a module on the meta device.

    Raises:
        ClipFileError: Names the weights that are missing, unknown or of another shape.
    """
    problems = misfits({name: value.shape for name, value in module.state_dict().items()}, weights)
    if problems:
        raise ClipFileError(
            f"{path}: {len(problems)} weights do not fit: {'; '.join(problems)}; "
            "name the weights of this architecture"
        )
    module.load_state_dict(weights, assign=assign)


def misfits(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> list[str]:
    """The weights that are missing, unknown or of another shape than expected, one phrase each."""
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != tuple(shape)
    ]
    return problems
