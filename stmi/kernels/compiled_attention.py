"""Modulated attention for the compiler: forward and backward pass as whole expressions, which it fuses.

The mathematics is that of `stmi.kernels.partwise_attention`, without parts and without in-place operations.
The backward pass that the compiler makes from the equations as written reads memory twice as often, mostly to
find the columns that share a row's maximum.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stmi.kernels.partwise_attention import both_foreground, strength_gradients


def compiled_attention(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Arguments and result are those of `stmi.feature_modulation.modulated_attention`."""
    return _CompiledAttention.apply(projected, foreground, alpha, beta, scale)


class _CompiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
    ) -> Tensor:
        with torch.autocast(projected.device.type, enabled=False):
            query, key, value = (x.transpose(1, 2) for x in projected.unbind(2))
            query, key, value = (query * scale).contiguous(), key.contiguous(), value.contiguous()
            logits = query @ key.transpose(-2, -1)
            highest, lowest = logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True)
            at_highest, at_lowest = _column_of(highest, logits), _column_of(lowest, logits)
            modulated = torch.where(
                both_foreground(foreground),
                logits + alpha * (highest - logits),
                logits - beta * (logits - lowest),
            )
            attention = modulated.softmax(dim=-1).to(logits.dtype)
            output = (attention @ value).transpose(1, 2)
        ctx.scale = scale
        rows = highest, at_highest, lowest, at_lowest
        ctx.save_for_backward(query, key, value, foreground, alpha, beta, attention, *rows)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, foreground, alpha, beta, attention, *rows = ctx.saved_tensors
        highest, at_highest, lowest, at_lowest = rows
        dtype = query.dtype
        with torch.autocast(query.device.type, enabled=False):
            grad_output = grad_output.to(dtype).transpose(1, 2).contiguous()
            grad_value = attention.transpose(-2, -1) @ grad_output
            grad_attention = grad_output @ value.transpose(-2, -1)
            grad_logits = torch.ops.aten._softmax_backward_data(grad_attention, attention, -1, dtype)

            m = foreground[:, None, :, None].to(dtype)
            keys = torch.cat([key, key * m, m.expand_as(key[..., :1])], dim=-1)
            sums = (grad_logits @ keys).to(alpha.dtype)
            grad_strength = strength_gradients(sums, query, m, highest, lowest)

            columns, grad_shift = _columns(attention), sums[..., -1:] * m
            grad_logits = grad_logits - torch.where(both_foreground(foreground), alpha, beta) * grad_logits
            grad_logits = grad_logits + torch.where(columns == at_highest, alpha * grad_shift, 0.0)
            grad_logits = grad_logits - torch.where(columns == at_lowest, beta * grad_shift, 0.0)
            grad_logits = grad_logits.to(dtype)
            grad_query = ctx.scale * (grad_logits @ key)
            grad_key = grad_logits.transpose(-2, -1) @ query
            grad_projected = torch.stack(
                [x.transpose(1, 2) for x in (grad_query, grad_key, grad_value)], dim=2
            )
            grad_alpha, grad_beta = (x.sum_to_size(1, *alpha.shape)[0] for x in grad_strength)
        return grad_projected, None, grad_alpha, grad_beta, None


def _columns(like: Tensor) -> Tensor:
    """Numbers of the columns, in a type in which the compiler uses vector instructions for a maximum."""
    return torch.arange(like.shape[-1], dtype=torch.float32, device=like.device)


def _column_of(extreme: Tensor, logits: Tensor) -> Tensor:
    """The column of each row's extreme; -1 where the logits are NaN."""
    return torch.where(logits == extreme, _columns(logits), -1.0).amax(dim=-1, keepdim=True)
