"""Files of an exported network: written, and computed as another program would."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from experiments.exporting.exported_network import ExportedNetwork

Compute = Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]]
"""Features by name, of inputs by name."""

METADATA = "stmi"
"""Under which a file says what it is."""


def _cdist(first: Tensor, second: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    return (first[:, :, None] - second[:, None]).square().sum(dim=-1).sqrt()


def _sort(
    values: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    # Of equal values ONNX's TopK takes the first ones.
    return torch.topk(values, values.shape[dim], dim, largest=descending)


WITHOUT_ONNX = {
    torch.ops.aten.cdist.default: _cdist,
    torch.ops.aten.sort.stable: _sort,
}
"""Operations that the exporter to ONNX does not know: Euclidean distances and stable order, by others."""


def trace(network: ExportedNetwork, inputs: Mapping[str, Tensor]) -> ExportedProgram:
    """The graph of a network, for any size of batch.

    Args:
        network: What is exported.
        inputs: An example of at least two samples.
    """
    batch = Dim("batch", min=1, max=2**16)
    with torch.no_grad():
        return torch.export.export(
            network, (), kwargs=dict(inputs), dynamic_shapes={name: {0: batch} for name in inputs}
        )


def write_torch_export(program: ExportedProgram, outputs: list[str], about: str, path: Path) -> None:
    """Write a `.pt2` file, which `torch.export.load` reads."""
    torch.export.save(program, path, extra_files={f"{METADATA}.json": about})


def load_torch_export(path: Path) -> Compute:
    """What a `.pt2` file computes."""
    module = torch.export.load(path).module()

    def compute(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {name: values.numpy() for name, values in module(**inputs).items()}

    return compute


def write_onnx(program: ExportedProgram, outputs: list[str], about: str, path: Path) -> None:
    """Write an ONNX file with its weights inside."""
    program = program.run_decompositions(WITHOUT_ONNX)
    exported = torch.onnx.export(program, dynamo=True, output_names=outputs, verbose=False)
    assert exported is not None
    exported.model.metadata_props[METADATA] = about
    exported.save(path, external_data=False)


def load_onnx(path: Path) -> Compute:
    """What an ONNX file computes, by onnxruntime."""
    import onnxruntime  # noqa: PLC0415 - an optional package

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def compute(inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        values = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(names, values, strict=True))

    return compute


FORMATS = {
    "onnx": (write_onnx, load_onnx),
    "torch-export": (write_torch_export, load_torch_export),
}
"""Name to what writes a file, and what computes it."""
