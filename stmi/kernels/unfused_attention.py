"""Attention without modulation as two matrix products and a softmax."""

import torch
from torch import Tensor

from stmi.kernels.linear import under_autocast


def unfused_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Compute `torch.nn.functional.scaled_dot_product_attention`, also under autocast."""
    query, key, value = map(under_autocast, (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        logits = query * scale @ key.transpose(-2, -1)
        return logits.softmax(dim=-1) @ value
