"""The attention of SFM with its own backward pass, which keeps the attention and nothing else of that size.

With logits A = Q K^T (queries scaled before), marks m, R = m m^T and row extremes max_i, min_i, eq. 7 is

    A + S = A * scale + R * shift + beta min_i
    scale = (1 - beta) - (alpha - beta) R,    shift_i = alpha max_i - beta min_i

The last term is the same for a whole row, and the softmax does not see it. Of the gradient D of the
modulated logits, alpha and beta want sums over D * A and D * R * A. These are sums over queries and products
of D with the keys, and with those of the foreground: sum_j D_ij R_ij A_ij = m_i q_i . sum_j D_ij m_j k_j.
So the logits need not be kept, and D is not masked. `stmi.feature_modulation.modulate` is eq. 7 as the paper
has it.
"""

from typing import Any

import torch
from torch import Tensor

PART_ELEMENTS = 8 * 2**20
"""Logits that a processor works on at a time: parts that fit its cache are faster than all at once."""


def modulated_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor
) -> Tensor:
    """Attention with the logits of equation 7.

    Args:
        query: Already scaled by 1 / sqrt(head width), `(batch, heads, tokens, head width)`.
        key: Likewise, not scaled.
        value: Likewise.
        foreground: Boolean, `(batch, tokens)`.
        alpha: Strength of the enhancement, `(heads or 1, 1, 1)`.
        beta: Strength of the suppression, likewise.

    Returns:
        `(batch, heads, tokens, head width)`.
    """
    keeps = torch.is_grad_enabled()
    return _ModulatedAttention.apply(query, key, value, foreground, alpha, beta, keeps)


class _ModulatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        foreground: Tensor,
        alpha: Tensor,
        beta: Tensor,
        keeps: bool,
    ) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        mixed = torch.empty_like(query)
        of_parts: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            both, scale = _both_and_scale(foreground, alpha, beta, query.dtype)
            for images, heads in _parts(query):
                part = images, heads
                logits = query[part] @ key[part].transpose(-2, -1)
                highest, at_highest = logits.max(dim=-1, keepdim=True)
                lowest, at_lowest = logits.min(dim=-1, keepdim=True)
                shift = _of(heads, alpha, logits) * highest - _of(heads, beta, logits) * lowest
                logits.mul_(_of(heads, scale[images])).addcmul_(both[images], shift)
                attention = logits.softmax(dim=-1)
                mixed[part] = attention @ value[part]
                if keeps:
                    of_parts += attention, highest, at_highest, lowest, at_lowest
        ctx.save_for_backward(query, key, value, foreground, alpha, beta, *of_parts)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, foreground, alpha, beta, *of_parts = ctx.saved_tensors
        of_mixed = gradients[0].to(query.dtype).contiguous()
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        of_alpha, of_beta = torch.zeros_like(alpha), torch.zeros_like(beta)
        with torch.autocast(query.device.type, enabled=False):
            _, scale = _both_and_scale(foreground, alpha, beta, query.dtype)
            marks = foreground[:, None, :, None].to(query.dtype)
            columns = torch.cat([key, key * marks, marks.expand_as(key[..., :1])], dim=-1)
            # Products with a transpose are fast where the transpose lies in memory as such.
            query_t, of_mixed_t = (x.transpose(-2, -1).contiguous() for x in (query, of_mixed))
            for i, (images, heads) in enumerate(_parts(query)):
                part, mark = (images, heads), marks[images]
                attention, highest, at_highest, lowest, at_lowest = of_parts[5 * i : 5 * i + 5]
                of_value[part] = (of_mixed_t[part] @ attention).transpose(-2, -1)
                of_logits = (of_mixed[part] @ value[part].transpose(-2, -1)).mul_(attention)
                of_logits.addcmul_(attention, of_logits.sum(dim=-1, keepdim=True), value=-1)

                everywhere, inside, of_shift = _sums(of_logits @ columns[part], query[part])
                inside, of_shift = inside * mark, of_shift * mark
                _add_up(of_alpha, heads, of_shift * highest - inside)
                _add_up(of_beta, heads, inside - everywhere - of_shift * lowest)

                of_logits.mul_(_of(heads, scale[images]))
                _add_at(of_logits, at_highest, _of(heads, alpha, query) * of_shift)
                _add_at(of_logits, at_lowest, -_of(heads, beta, query) * of_shift)
                of_query[part] = of_logits @ key[part]
                of_key[part] = (query_t[part] @ of_logits).transpose(-2, -1)
        return of_query, of_key, of_value, None, of_alpha, of_beta, None


def _both_and_scale(
    foreground: Tensor, alpha: Tensor, beta: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """R, `(batch, 1, tokens, tokens)`, and the scale of the logits, `(batch, heads or 1, tokens, tokens)`."""
    marks = foreground[:, None, :, None].to(dtype)
    both = marks * marks.transpose(-2, -1)
    return both, (1 - beta).to(dtype) - (alpha - beta).to(dtype) * both


def _of(heads: slice, shared: Tensor, like: Tensor | None = None) -> Tensor:
    """What belongs to some heads of a tensor `(..., heads or 1, rows, columns)`."""
    own = shared if shared.numel() == 1 or shared.shape[-3] == 1 else shared[..., heads, :, :]
    return own if like is None else own.to(like.dtype)


def _sums(products: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over each row of D * A, of that in foreground columns, and of D there, `(..., tokens, 1)`."""
    width = query.shape[-1]
    everywhere, inside, of_shift = products.split([width, width, 1], dim=-1)
    return (everywhere * query).sum(-1, keepdim=True), (inside * query).sum(-1, keepdim=True), of_shift


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
    most = PART_ELEMENTS if query.device.type == "cpu" else 64 * PART_ELEMENTS
    head_step = min(heads, max(1, most // tokens**2))
    image_step = max(1, most // (heads * tokens**2)) if head_step == heads else 1
    return [
        (slice(image, image + image_step), slice(head, head + head_step))
        for image in range(0, batch, image_step)
        for head in range(0, heads, head_step)
    ]
