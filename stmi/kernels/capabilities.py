"""Hardware capabilities."""

import torch


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for matrix products in bfloat16.

    Without them such a product takes about a hundred times as long as in float32.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
