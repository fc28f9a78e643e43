"""SAM2's published sizes, and checkpoints of them: read without executing anything, checked before use.

Ravi et al. 2024, "SAM 2: Segment Anything in Images and Videos". A checkpoint is what the authors publish:
a file of `torch.save({"model": state_dict})`.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_catalog.errors import CatalogError, name_first
from stmi.checksums import file_digest

SAM2_MODELS: Mapping[str, str] = {
    f"{family}_hiera_{size}": f"configs/{family}/{family}_hiera_{size}.yaml"
    for family in ("sam2.1", "sam2")
    for size in ("t", "s", "b+", "l")
}
"""Every published size (tiny, small, base plus, large) to its configuration in the `sam2` package."""

Weights = Mapping[str, Any]
"""Name to tensor."""

_SHOWN = 5


def build_sam2_model(model: str, image_size: int, overrides: Sequence[str] = ()) -> Any:
    """A SAM2 of a published size with random weights, in evaluation mode, on the CPU.

    Args:
        model: A name of SAM2_MODELS.
        image_size: Side of the square that images are resized to, pixels.
        overrides: Hydra overrides of the configuration.
    """
    # This import, and those of torch below, take seconds that other commands need not pay.
    from sam2.build_sam import build_sam2  # noqa: PLC0415

    return build_sam2(
        SAM2_MODELS[model],
        device="cpu",
        hydra_overrides_extra=[f"++model.image_size={image_size}", *overrides],
    )


def check_checkpoint(path: Path, model: str, image_size: int, overrides: Sequence[str] = ()) -> str:
    """SHA-256 of a checkpoint file that fits a model.

    Args:
        path: The file.
        model: A name of SAM2_MODELS.
        image_size: As for `build_sam2_model`.
        overrides: As for `build_sam2_model`.

    Raises:
        CatalogError: If the file is missing, is not a checkpoint, or its weights are not those of the model.
    """
    weights = _read_weights(path)
    _check_weights(path, weights, model, build_sam2_model(model, image_size, overrides).state_dict())
    return file_digest(path)


def load_sam2_model(
    path: Path, sha256: str, model: str, image_size: int, overrides: Sequence[str] = ()
) -> Any:
    """A SAM2 with the weights of a checkpoint, in evaluation mode, on the CPU.

    Args:
        path: The file, which must have been checked.
        sha256: Its SHA-256, as `check_checkpoint` gave it.
        model: A name of SAM2_MODELS.
        image_size: As for `build_sam2_model`.
        overrides: As for `build_sam2_model`.

    Raises:
        CatalogError: If the file is not there (on this machine) or is not the one that was checked.
    """
    weights = _read_weights(path)
    if (found := file_digest(path)) != sha256:
        raise CatalogError(
            f"checkpoint {path} has SHA-256 {found[:12]}..., expected {sha256[:12]}...; it was replaced "
            "after it was checked, or differs between machines: put the same file on all of them"
        )
    built = build_sam2_model(model, image_size, overrides)
    built.load_state_dict(weights)
    return built


def _read_weights(path: Path) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    if not path.is_file():
        raise CatalogError(
            f"checkpoint {path} is not there or is not a file; give the .pt file of a published SAM2, on a "
            "disk that every worker sees"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise CatalogError(
            f"checkpoint {path} is not a file of weights alone and was not executed ({first}); give a .pt "
            'file that torch.save({"model": state_dict}) wrote'
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, AttributeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CatalogError(
            f"checkpoint {path} cannot be read ({first}); it is damaged or no .pt file: download it again"
        ) from None
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        keys = f"a dict of {', '.join(map(str, list(content)[:_SHOWN]))}" if isinstance(content, dict) else ""
        raise CatalogError(
            f'checkpoint {path} holds {keys or type(content).__name__}, expected {{"model": state_dict}} as '
            "SAM2 publishes it"
        )
    return weights


def _is_zip(path: Path) -> bool:
    """Whether the file has torch's format since 1.6, which alone can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_weights(path: Path, weights: Weights, model: str, expected: Weights) -> None:
    faults = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(weights.keys() & expected.keys())
            if weights[name].shape != expected[name].shape
        ],
        "with NaN or infinity": [
            name
            for name in sorted(weights.keys() & expected.keys())
            if weights[name].dtype.is_floating_point and not bool(weights[name].isfinite().all())
        ],
    }
    found = [f"{len(names)} {kind} ({name_first(names)})" for kind, names in faults.items() if names]
    if found:
        raise CatalogError(
            f"checkpoint {path} does not fit --model {model}: weights {'; '.join(found)}. Choose the --model "
            f"that the file was published for, one of {', '.join(SAM2_MODELS)}"
        )
