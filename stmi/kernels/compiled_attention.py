"""The attention of SFM for the compiler: equation 8 and its backward pass in whole expressions.

The mathematics is that of `stmi.kernels.modulated_attention`. There it is done part by part and in place, by
PyTorch's operators; here without either, so that the compiler fuses what stands between two matrix products.
Of equation 7 as it is written it makes twice as many passes over memory for the backward pass, most of them
to find out which columns share a row's maximum.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stmi.kernels.modulated_attention import both_foreground


def compiled_attention(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Arguments and result as of `stmi.kernels.modulated_attention.modulated_attention`."""
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
            mixed = (attention @ value).transpose(1, 2)
        ctx.scale = scale
        rows = highest, at_highest, lowest, at_lowest
        ctx.save_for_backward(query, key, value, foreground, alpha, beta, attention, *rows)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mixed: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, foreground, alpha, beta, attention, *rows = ctx.saved_tensors
        highest, at_highest, lowest, at_lowest = rows
        width, dtype = query.shape[-1], query.dtype
        with torch.autocast(query.device.type, enabled=False):
            of_mixed = of_mixed.to(dtype).transpose(1, 2).contiguous()
            of_value = attention.transpose(-2, -1) @ of_mixed
            of_attention = of_mixed @ value.transpose(-2, -1)
            of_logits = torch.ops.aten._softmax_backward_data(of_attention, attention, -1, dtype)

            mark = foreground[:, None, :, None].to(dtype)
            beside = torch.cat([key, key * mark, mark.expand_as(key[..., :1])], dim=-1)
            sums = (of_logits @ beside).to(alpha.dtype)
            everywhere, inside, of_shift = sums.split([width, width, 1], dim=-1)
            of_shift = of_shift * mark
            of_inside = (inside * query).sum(dim=-1, keepdim=True) * mark
            of_everywhere = (everywhere * query).sum(dim=-1, keepdim=True)
            of_alpha = of_shift * highest - of_inside
            of_beta = of_inside - of_everywhere - of_shift * lowest

            columns = _columns(attention)
            of_logits = of_logits - torch.where(both_foreground(foreground), alpha, beta) * of_logits
            of_logits = of_logits + torch.where(columns == at_highest, alpha * of_shift, 0.0)
            of_logits = (of_logits - torch.where(columns == at_lowest, beta * of_shift, 0.0)).to(dtype)
            of_query = ctx.scale * (of_logits @ key)
            of_key = of_logits.transpose(-2, -1) @ query
            of_projected = torch.stack([x.transpose(1, 2) for x in (of_query, of_key, of_value)], dim=2)
            of_strength = (x.sum_to_size(1, *alpha.shape)[0] for x in (of_alpha, of_beta))
        return of_projected, None, *of_strength, None


def _columns(like: Tensor) -> Tensor:
    """Numbers of the columns, in a type in which the compiler finds a maximum many at a time."""
    return torch.arange(like.shape[-1], dtype=torch.float32, device=like.device)


def _column_of(extreme: Tensor, logits: Tensor) -> Tensor:
    """Where in each row its extreme is; -1 where the logits are not numbers."""
    return torch.where(logits == extreme, _columns(logits), -1.0).amax(dim=-1, keepdim=True)
