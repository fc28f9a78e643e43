"""Modulated attention in parts that fit the cache of a CPU, with in-place operations.

With logits A = Q K^T (queries scaled before), foreground m, R = m m^T and row extremes max_i, min_i, the
modulated logits are

    A + S = A - A * strength + R * shift + beta min_i
    strength = beta + (alpha - beta) R,    shift_i = alpha max_i - beta min_i

The last term is the same for a whole row, so the softmax does not depend on it. With D the gradient of the
modulated logits, the gradients of alpha and beta are sums over D * A and D * R * A. They follow from products
of D with the keys and with the keys of the foreground: sum_j D_ij R_ij A_ij = m_i q_i . sum_j D_ij m_j k_j.
So the logits need not be kept, and D is not masked.

The backward pass needs one attention, (batch, heads, tokens, tokens), of the type that the products are
computed in, and queries, keys and values. PyTorch's fused attention keeps no attention but computes it twice;
in bfloat16, with heads 64 wide, this keeps 1.3 times its bytes at 129 tokens, 2.8 at 513 and 4.8 at 1,025.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stmi.kernels.operators import with_own_gradient

PART_ELEMENTS = 2**21
"""Logits that a CPU computes at a time: parts that fit its cache are faster than all at once."""


def partwise_attention(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Arguments and result are those of `stmi.feature_modulation.modulated_attention`."""
    return _operator(projected, foreground, alpha, beta, scale, torch.is_grad_enabled())


def _forward(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float, keeps: bool
) -> list[Tensor]:
    """The attention's output and, if it `keeps` them, the tensors that the backward pass needs.

    Returns:
        The output, `(batch, tokens, heads, head width)`; scaled queries, keys and values,
        `(3, batch, heads, tokens, head width)`; maximum and minimum of each row of logits,
        `(2, batch, heads, tokens, 1)`, and their columns, likewise; the attention of each part,
        `(images, heads, tokens, tokens)`.
    """
    qkv = projected.permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
    query, key, value = qkv
    query *= scale
    output = projected.new_empty(projected[:, :, 0].shape)
    extremes = query.new_empty((2, *query.shape[:-1], 1))
    columns, kept = torch.empty_like(extremes, dtype=torch.int64), []
    with torch.autocast(projected.device.type, enabled=False):
        both = both_foreground(foreground)
        strength, both = _strength(both, alpha, beta, query.dtype), both.to(query.dtype)
        alpha, beta, scratch = alpha.to(query.dtype), beta.to(query.dtype), _Scratch(query)
        for part in _parts(query):
            images, heads = part
            q, k_t = query[part], key[part].transpose(-2, -1)
            logits = torch.matmul(q, k_t, out=scratch("logits", (*q.shape[:-1], k_t.shape[-1])))
            highest, at_highest, lowest, at_lowest = row_extremes(logits, scratch)
            shift = _select(alpha, heads) * highest - _select(beta, heads) * lowest
            logits.addcmul_(logits, _select(strength[images], heads), value=-1)
            logits.addcmul_(both[images], shift)
            attention = logits.softmax(dim=-1)
            output[images, :, heads] = (attention @ value[part]).transpose(1, 2)
            if keeps:
                kept.append(attention)
                extremes[0][part], extremes[1][part] = highest, lowest
                columns[0][part], columns[1][part] = at_highest, at_lowest
    return [output, qkv, extremes, columns, *kept] if keeps else [output]


def _backward(
    grad_output: Tensor, kept: list[Tensor], foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> list[Tensor]:
    """Gradients of the projected queries, keys and values, of alpha and of beta."""
    (query, key, value), extremes, columns, *attentions = kept
    dtype = query.dtype
    grad_output = grad_output.to(dtype)
    grad_projected = grad_output.new_empty((*grad_output.shape[:2], 3, *grad_output.shape[2:]))
    grad_alpha, grad_beta = torch.zeros_like(alpha), torch.zeros_like(beta)
    with torch.autocast(query.device.type, enabled=False):
        strength = _strength(both_foreground(foreground), alpha, beta, dtype)
        m = foreground[:, None, :, None].to(dtype)
        alpha, beta = alpha.to(dtype), beta.to(dtype)
        # One product gives D with the keys, with those of the foreground, and with m.
        keys = torch.cat([key, key * m, m.expand_as(key[..., :1])], dim=-1)
        sums, scratch = torch.empty_like(keys), _Scratch(query)
        for part, attention in zip(_parts(query), attentions, strict=True):
            images, heads = part
            grad_query, grad_key, grad_value = grad_projected[images, :, :, heads].permute(2, 0, 3, 1, 4)
            # A product with a transpose is fast where the transpose is contiguous in memory.
            grad_part = grad_output[images, :, heads].transpose(1, 2)
            grad_value.copy_((grad_part.transpose(-2, -1).contiguous() @ attention).transpose(-2, -1))
            grad_attention = scratch("grad_attention", attention.shape)
            torch.matmul(grad_part, value[part].transpose(-2, -1), out=grad_attention)
            grad_logits = torch.ops.aten._softmax_backward_data(
                grad_attention, attention, -1, dtype, grad_input=scratch("grad_logits", attention.shape)
            )

            grad_shift = torch.matmul(grad_logits, keys[part], out=sums[part])[..., -1:] * m[images]
            grad_logits.addcmul_(grad_logits, _select(strength[images], heads), value=-1)
            _add_at(grad_logits, columns[0][part], _select(alpha, heads) * grad_shift)
            _add_at(grad_logits, columns[1][part], -_select(beta, heads) * grad_shift)
            grad_query.copy_(scale * (grad_logits @ key[part]))
            grad_key.copy_((query[part].transpose(-2, -1).contiguous() @ grad_logits).transpose(-2, -1))

        for_alpha, for_beta = strength_gradients(sums, query, m, extremes[0], extremes[1])
        for part in _parts(query):
            _add_up(grad_alpha, part[1], for_alpha[part])
            _add_up(grad_beta, part[1], for_beta[part])
    return [grad_projected, grad_alpha, grad_beta]


_operator = with_own_gradient(
    "modulated_attention", _forward, _backward, needed=(1, 2, 3, 4), trained=(0, 2, 3)
)


def both_foreground(foreground: Tensor) -> Tensor:
    """R = m m^T of foreground `(batch, tokens)`, boolean, `(batch, 1, tokens, tokens)`."""
    m = foreground[:, None, :, None]
    return m & m.transpose(-2, -1)


def strength_gradients(
    sums: Tensor, query: Tensor, m: Tensor, highest: Tensor, lowest: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of alpha and of beta, before they are summed over rows.

    Args:
        sums: Products of D with keys, keys of the foreground, and m, `(batch, heads, tokens, 2 width + 1)`.
        query: Scaled queries, `(batch, heads, tokens, width)`.
        m: Foreground, 0 or 1, `(batch, 1, tokens, 1)`.
        highest: Maximum of each row of logits, `(batch, heads, tokens, 1)`.
        lowest: Minimum of each row, likewise.

    Returns:
        Two tensors `(batch, heads, tokens, 1)`.
    """
    width = query.shape[-1]
    everywhere, inside, shift = sums.split([width, width, 1], dim=-1)
    shift = shift * m
    inside = (inside * query).sum(dim=-1, keepdim=True) * m
    everywhere = (everywhere * query).sum(dim=-1, keepdim=True)
    return shift * highest - inside, inside - everywhere - shift * lowest


def _strength(both: Tensor, alpha: Tensor, beta: Tensor, dtype: torch.dtype) -> Tensor:
    """The share by which each logit moves to an extreme of its row, `(batch, heads or 1, tokens, tokens)`.

    That is alpha or beta. Store these, not 1 - alpha: the latter rounds badly in bfloat16.
    """
    return torch.where(both, alpha.to(dtype), beta.to(dtype))


_WIDER = {torch.bfloat16: (torch.float32, torch.int32), torch.float32: (torch.float64, torch.int64)}
"""For a type, a wider one whose extra bits can hold a column, and the integer type to write them with."""
_COLUMN = 0x7FFF
"""Bits of a column. The first of bfloat16's 16 extra bits stays zero, so that rounding drops the others."""


def row_extremes(logits: Tensor, scratch: "_Scratch | None" = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maximum of each row and its column, minimum and its column, each `(..., rows, 1)`.

    A CPU finds a maximum with vector instructions, but not its column. So the column is written into the
    extra bits of a wider type, and found together with the number.
    """
    last = logits.shape[-1] - 1
    if logits.device.type != "cpu" or logits.dtype not in _WIDER or last > _COLUMN:
        return *logits.max(dim=-1, keepdim=True), *logits.min(dim=-1, keepdim=True)
    wider, integer = _WIDER[logits.dtype]
    numbered = (scratch or _Scratch(logits))("numbered", logits.shape, wider).copy_(logits)
    numbered.view(integer).bitwise_or_(torch.arange(last + 1, dtype=integer))
    highest, lowest = numbered.amax(dim=-1, keepdim=True), numbered.amin(dim=-1, keepdim=True)
    # NaN has no column; it will be found in the loss, not here.
    at_highest, at_lowest = ((x.view(integer) & _COLUMN).clamp_(max=last) for x in (highest, lowest))
    return highest.to(logits.dtype), at_highest, lowest.to(logits.dtype), at_lowest


def _select(per_head: Tensor, heads: slice) -> Tensor:
    """The part for some heads of a tensor `(..., heads or 1, rows, columns)`."""
    return per_head if per_head.numel() == 1 or per_head.shape[-3] == 1 else per_head[..., heads, :, :]


def _add_up(total: Tensor, heads: slice, rows: Tensor) -> None:
    """Add gradients of rows `(images, heads, tokens, 1)` to the gradient of alpha or beta."""
    per_head = rows.sum(dim=(0, 2), dtype=total.dtype)
    if total.numel() == 1:
        total += per_head.sum()
    else:
        total[heads] += per_head[..., None]


def _add_at(rows: Tensor, column: Tensor, values: Tensor) -> None:
    """Add a value to one column of each row, in place; faster than `scatter_add_` in bfloat16."""
    starts = torch.arange(0, rows.numel(), rows.shape[-1], device=rows.device)
    rows.view(-1).index_add_(0, starts + column.flatten(), values.flatten())


def _parts(query: Tensor) -> list[tuple[slice, slice]]:
    """Whole images, or some heads of one image, whose logits are few enough."""
    batch, heads, tokens = query.shape[:3]
    most = PART_ELEMENTS if query.device.type == "cpu" else 256 * PART_ELEMENTS
    # Parts of an image have about as many heads each.
    head_step = -(-heads // -(-heads * tokens**2 // most))
    image_step = max(1, most // (heads * tokens**2))
    return [
        (slice(image, image + image_step), slice(head, head + head_step))
        for image in range(0, batch, image_step)
        for head in range(0, heads, head_step)
    ]


class _Scratch:
    """Memory that the parts use one after the other: memory that was just used is in the CPU's cache."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._memory: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        count = math.prod(shape)
        if name not in self._memory or len(self._memory[name]) < count:
            self._memory[name] = self._like.new_empty(count, dtype=dtype or self._like.dtype)
        return self._memory[name][:count].view(shape)
