"""The attention of SFM with its own backward pass, which keeps the attention and nothing else of that size.

With logits A = Q K^T (queries scaled before), marks m, R = m m^T and row extremes max_i, min_i, eq. 7 is

    A + S = A * scale + R * shift + beta min_i
    scale = (1 - beta) - (alpha - beta) R,    shift_i = alpha max_i - beta min_i

The last term is the same for a whole row, and the softmax does not see it. Of the gradient D of the
modulated logits, alpha and beta want sums over D * A and D * R * A. These are sums over queries and products
of D with the keys, and with those of the foreground: sum_j D_ij R_ij A_ij = m_i q_i . sum_j D_ij m_j k_j.
So the logits need not be kept, and D is not masked. `stmi.feature_modulation.modulate` is eq. 7 as the paper
has it.

What is kept is one attention, (batch, heads, tokens, tokens), of the type that the products are computed in,
beside queries, keys and values. PyTorch's fused attention keeps no attention but computes it twice; in
bfloat16, with heads 64 wide, this keeps 1.3 times its bytes at 129 tokens, 2.8 at 513 and 4.7 at 1,025.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PART_ELEMENTS = 2**21
"""Logits that a processor works on at a time: parts that fit its cache are faster than all at once."""


def modulated_attention(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Attention with the logits of equation 7.

    Args:
        projected: Queries, keys and values, `(batch, tokens, 3, heads, head width)`.
        foreground: Boolean, `(batch, tokens)`.
        alpha: Strength of the enhancement, `(heads or 1, 1, 1)`.
        beta: Strength of the suppression, likewise.
        scale: What the queries are multiplied by, 1 / sqrt(D).

    Returns:
        `(batch, tokens, heads, head width)`.
    """
    return _ModulatedAttention.apply(projected, foreground, alpha, beta, scale, torch.is_grad_enabled())


class _ModulatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        foreground: Tensor,
        alpha: Tensor,
        beta: Tensor,
        scale_of_queries: float,
        keeps: bool,
    ) -> Tensor:
        qkv = projected.permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
        query, key, value = qkv
        query *= scale_of_queries
        mixed = projected.new_empty(projected.shape[:2] + projected.shape[3:])
        of_parts: list[Tensor] = []
        with torch.autocast(projected.device.type, enabled=False):
            both, scale = _both_and_scale(foreground, alpha, beta, query.dtype)
            for part in _parts(query):
                images, heads = part
                logits = query[part] @ key[part].transpose(-2, -1)
                highest, at_highest, lowest, at_lowest = _row_extremes(logits)
                shift = _of(heads, alpha, logits) * highest - _of(heads, beta, logits) * lowest
                logits.mul_(_of(heads, scale[images])).addcmul_(both[images], shift)
                attention = logits.softmax(dim=-1)
                mixed[images, :, heads] = (attention @ value[part]).transpose(1, 2)
                if keeps:
                    of_parts += attention, highest, at_highest, lowest, at_lowest
        ctx.scale_of_queries = scale_of_queries
        ctx.save_for_backward(qkv, foreground, alpha, beta, *of_parts)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, foreground, alpha, beta, *of_parts = ctx.saved_tensors
        query, key, value = qkv
        of_mixed = gradients[0].to(query.dtype)
        of_projected = of_mixed.new_empty((*of_mixed.shape[:2], 3, *of_mixed.shape[2:]))
        of_alpha, of_beta = torch.zeros_like(alpha), torch.zeros_like(beta)
        width = query.shape[-1]
        with torch.autocast(query.device.type, enabled=False):
            _, scale = _both_and_scale(foreground, alpha, beta, query.dtype)
            marks = foreground[:, None, :, None].to(query.dtype)
            for i, part in enumerate(_parts(query)):
                images, heads = part
                q, k, mark = query[part], key[part], marks[images]
                attention, highest, at_highest, lowest, at_lowest = of_parts[5 * i : 5 * i + 5]
                of_query, of_key, of_value = of_projected[images, :, :, heads].permute(2, 0, 3, 1, 4)
                # Products with a transpose are fast where the transpose lies in memory as such.
                of_part = of_mixed[images, :, heads].transpose(1, 2)
                of_value.copy_((of_part.transpose(-2, -1).contiguous() @ attention).transpose(-2, -1))
                of_attention = of_part @ value[part].transpose(-2, -1)
                of_logits = torch.ops.aten._softmax_backward_data(of_attention, attention, -1, q.dtype)

                columns = torch.cat([k, k * mark, mark.expand_as(k[..., :1])], dim=-1)
                everywhere, inside, of_shift = (of_logits @ columns).split([width, width, 1], dim=-1)
                of_shift = of_shift * mark
                of_inside = (inside * q).sum(dim=-1, keepdim=True) * mark
                of_everywhere = (everywhere * q).sum(dim=-1, keepdim=True)
                _add_up(of_alpha, heads, of_shift * highest - of_inside)
                _add_up(of_beta, heads, of_inside - of_everywhere - of_shift * lowest)

                of_logits.mul_(_of(heads, scale[images]))
                _add_at(of_logits, at_highest, _of(heads, alpha, q) * of_shift)
                _add_at(of_logits, at_lowest, -_of(heads, beta, q) * of_shift)
                of_query.copy_(ctx.scale_of_queries * (of_logits @ k))
                of_key.copy_((q.transpose(-2, -1).contiguous() @ of_logits).transpose(-2, -1))
        return of_projected, None, of_alpha, of_beta, None, None


def _both_and_scale(
    foreground: Tensor, alpha: Tensor, beta: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """R, `(batch, 1, tokens, tokens)`, and the scale of the logits, `(batch, heads or 1, tokens, tokens)`."""
    marks = foreground[:, None, :, None].to(dtype)
    both = marks * marks.transpose(-2, -1)
    return both, (1 - beta).to(dtype) - (alpha - beta).to(dtype) * both


_WIDER = {torch.bfloat16: (torch.float32, torch.int32), torch.float32: (torch.float64, torch.int64)}
"""Types that hold a number and, in the bits behind it, its column; and the integers to write that with."""
_COLUMN = 0x7FFF
"""Bits of a column. The first of the 16 behind a bfloat16 stays zero, so that the column rounds away."""


def _row_extremes(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maximum of each row and its column, minimum and its column, each `(..., rows, 1)`.

    A processor finds a maximum many numbers at a time, but its place one by one. So the column goes with the
    number, where the number leaves bits free.
    """
    if logits.device.type != "cpu" or logits.dtype not in _WIDER:
        return *logits.max(dim=-1, keepdim=True), *logits.min(dim=-1, keepdim=True)
    wider, integer = _WIDER[logits.dtype]
    marked, last = logits.to(wider), logits.shape[-1] - 1
    marked.view(integer).bitwise_or_(torch.arange(last + 1, dtype=integer))
    highest, lowest = marked.amax(dim=-1, keepdim=True), marked.amin(dim=-1, keepdim=True)
    # What is not a number has no column, and is to be found in the loss, not here.
    at_highest, at_lowest = ((x.view(integer) & _COLUMN).clamp_(max=last) for x in (highest, lowest))
    return highest.to(logits.dtype), at_highest, lowest.to(logits.dtype), at_lowest


def _of(heads: slice, shared: Tensor, like: Tensor | None = None) -> Tensor:
    """What belongs to some heads of a tensor `(..., heads or 1, rows, columns)`."""
    own = shared if shared.numel() == 1 or shared.shape[-3] == 1 else shared[..., heads, :, :]
    return own if like is None else own.to(like.dtype)


def _add_up(total: Tensor, heads: slice, of_rows: Tensor) -> None:
    """Add gradients of rows `(images, heads, tokens, 1)` to those of alpha or beta."""
    of_heads = of_rows.sum(dim=(0, 2), dtype=total.dtype)
    if total.numel() == 1:
        total += of_heads.sum()
    else:
        total[heads] += of_heads[..., None]


def _add_at(rows: Tensor, column: Tensor, values: Tensor) -> None:
    """Add a value to one column of each row, in place; faster than `scatter_add_` in bfloat16."""
    starts = torch.arange(0, rows.numel(), rows.shape[-1], device=rows.device)
    rows.view(-1).index_add_(0, starts + column.flatten(), values.flatten())


def _parts(query: Tensor) -> list[tuple[slice, slice]]:
    """Whole images, or some heads of one image, whose logits are few enough."""
    batch, heads, tokens = query.shape[:3]
    most = PART_ELEMENTS if query.device.type == "cpu" else 256 * PART_ELEMENTS
    # As many heads in each part of an image.
    head_step = -(-heads // -(-heads * tokens**2 // most))
    image_step = max(1, most // (heads * tokens**2))
    return [
        (slice(image, image + image_step), slice(head, head + head_step))
        for image in range(0, batch, image_step)
        for head in range(0, heads, head_step)
    ]
