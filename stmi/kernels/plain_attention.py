"""Attention without modulation, by the fastest of PyTorch's ways."""

import torch
from torch import Tensor
from torch.nn import functional


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(Q K^T * scale) V.

    Args:
        query: `(batch, heads, queries, head width)`.
        key: `(batch, heads, tokens, head width)`.
        value: Likewise.
        scale: What the logits are multiplied by; None for 1 / sqrt(head width).

    Returns:
        `(batch, heads, queries, head width)`.
    """
    trains = query.requires_grad or key.requires_grad
    if not (trains and query.device.type == "cpu" and query.dtype == torch.bfloat16):
        return functional.scaled_dot_product_attention(query, key, value, scale=scale)
    # The fused kernel's backward pass takes two to ten times as long on a processor in bfloat16.
    with torch.autocast("cpu", enabled=False):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        logits = query * scale @ key.transpose(-2, -1)
        return logits.softmax(dim=-1) @ value
