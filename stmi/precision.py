"""Which precision a processor is made for."""

import torch


def processor_multiplies_bfloat16() -> bool:
    """Whether matrix products in bfloat16 have instructions of their own on this processor.

    Where they have none, one takes about a hundred times as long as in float32.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
