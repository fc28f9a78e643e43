"""What a device is made for."""

import torch
from torch import Tensor


def processor_multiplies_bfloat16() -> bool:
    """Whether matrix products in bfloat16 have instructions of their own on this processor.

    Where they have none, one takes about a hundred times as long as in float32.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compiles_for_gpu(x: Tensor) -> bool:
    """Whether the network is being compiled for a GPU, where the compiler fuses better than operators do."""
    return torch.compiler.is_compiling() and x.device.type != "cpu"
