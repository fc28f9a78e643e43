"""The attention of SFM with its own backward pass, which keeps the attention and nothing else of that size.

With logits A = Q K^T (queries scaled before), marks m, R = m m^T and row extremes max_i, min_i, eq. 7 is

    A + S = A - A * strength + R * shift + beta min_i
    strength = beta + (alpha - beta) R,    shift_i = alpha max_i - beta min_i

The last term is the same for a whole row, and the softmax does not see it. Of the gradient D of the
modulated logits, alpha and beta want sums over D * A and D * R * A. These are sums over queries and products
of D with the keys, and with those of the foreground: sum_j D_ij R_ij A_ij = m_i q_i . sum_j D_ij m_j k_j.
So the logits need not be kept, and D is not masked. `stmi.feature_modulation.modulate` is eq. 7 as the paper
has it.

What is kept is one attention, (batch, heads, tokens, tokens), of the type that the products are computed in,
beside queries, keys and values. PyTorch's fused attention keeps no attention but computes it twice; in
bfloat16, with heads 64 wide, this keeps 1.3 times its bytes at 129 tokens, 2.8 at 513 and 4.8 at 1,025.
"""

import math
from collections.abc import Callable, Sequence
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
    inputs = (projected, foreground, alpha, beta, scale, torch.is_grad_enabled())
    mixed, *_ = _operator(*inputs) if torch.compiler.is_compiling() else _ModulatedAttention.apply(*inputs)
    return mixed


def _attend(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale_of_queries: float, keeps: bool
) -> list[Tensor]:
    """The attention's output and, if it `keeps`, what its backward pass needs.

    Returns:
        The output, `(batch, tokens, heads, head width)`; scaled queries, keys and values,
        `(3, batch, heads, tokens, head width)`; maximum and minimum of each row of logits,
        `(2, batch, heads, tokens, 1)`, and their columns, likewise; the attention of each part,
        `(images, heads, tokens, tokens)`. One list, because the compiler knows no list in a tuple.
    """
    qkv = projected.permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
    query, key, value = qkv
    query *= scale_of_queries
    mixed, extremes, columns = _outputs(projected)
    attention = []
    with torch.autocast(projected.device.type, enabled=False):
        both = both_foreground(foreground)
        strength, both = _strength(both, alpha, beta, query.dtype), both.to(query.dtype)
        alpha_of, beta_of, scratch = alpha.to(query.dtype), beta.to(query.dtype), _Scratch(query)
        for part in _parts(query):
            images, heads = part
            q, k_t = query[part], key[part].transpose(-2, -1)
            logits = torch.matmul(q, k_t, out=scratch("logits", (*q.shape[:-1], k_t.shape[-1])))
            highest, at_highest, lowest, at_lowest = _row_extremes(logits, scratch)
            shift = _of(heads, alpha_of) * highest - _of(heads, beta_of) * lowest
            logits.addcmul_(logits, _of(heads, strength[images]), value=-1).addcmul_(both[images], shift)
            weights = logits.softmax(dim=-1)
            mixed[images, :, heads] = (weights @ value[part]).transpose(1, 2)
            if keeps:
                attention.append(weights)
                for i, (extreme, column) in enumerate(((highest, at_highest), (lowest, at_lowest))):
                    extremes[i][part], columns[i][part] = extreme, column
    return [mixed, qkv, extremes, columns, *attention] if keeps else [mixed]


def _outputs(projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, _, heads, width = projected.shape
    rows = (2, batch, heads, tokens, 1)
    return (
        projected.new_empty((batch, tokens, heads, width)),
        projected.new_empty(rows),
        projected.new_empty(rows, dtype=torch.int64),
    )


def _attend_backward(
    of_mixed: Tensor,
    qkv: Tensor,
    foreground: Tensor,
    alpha: Tensor,
    beta: Tensor,
    extremes: Tensor,
    columns: Tensor,
    attention: list[Tensor],
    scale_of_queries: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projected queries, keys and values, of alpha and of beta."""
    query, key, value = qkv
    of_mixed = of_mixed.to(query.dtype)
    of_projected = of_mixed.new_empty((*of_mixed.shape[:2], 3, *of_mixed.shape[2:]))
    of_alpha, of_beta = torch.zeros_like(alpha), torch.zeros_like(beta)
    width = query.shape[-1]
    with torch.autocast(query.device.type, enabled=False):
        strength = _strength(both_foreground(foreground), alpha, beta, query.dtype)
        marks = foreground[:, None, :, None].to(query.dtype)
        beside = torch.cat([key, key * marks, marks.expand_as(key[..., :1])], dim=-1)
        sums, scratch = torch.empty_like(beside), _Scratch(query)
        alpha_of, beta_of = alpha.to(query.dtype), beta.to(query.dtype)
        for part, weights in zip(_parts(query), attention, strict=True):
            images, heads = part
            q, k = query[part], key[part]
            of_query, of_key, of_value = of_projected[images, :, :, heads].permute(2, 0, 3, 1, 4)
            # Products with a transpose are fast where the transpose lies in memory as such.
            of_part = of_mixed[images, :, heads].transpose(1, 2)
            of_value.copy_((of_part.transpose(-2, -1).contiguous() @ weights).transpose(-2, -1))
            of_attention = scratch("of attention", weights.shape)
            torch.matmul(of_part, value[part].transpose(-2, -1), out=of_attention)
            of_logits = torch.ops.aten._softmax_backward_data(
                of_attention, weights, -1, q.dtype, grad_input=scratch("of logits", weights.shape)
            )

            of_shift = torch.matmul(of_logits, beside[part], out=sums[part])[..., -1:] * marks[images]
            of_logits.addcmul_(of_logits, _of(heads, strength[images]), value=-1)
            _add_at(of_logits, columns[0][part], _of(heads, alpha_of) * of_shift)
            _add_at(of_logits, columns[1][part], -_of(heads, beta_of) * of_shift)
            of_query.copy_(scale_of_queries * (of_logits @ k))
            of_key.copy_((q.transpose(-2, -1).contiguous() @ of_logits).transpose(-2, -1))

        everywhere, inside, of_shift = sums.split([width, width, 1], dim=-1)
        of_shift = of_shift * marks
        of_inside = (inside * query).sum(dim=-1, keepdim=True) * marks
        of_everywhere = (everywhere * query).sum(dim=-1, keepdim=True)
        of_rows = of_shift * extremes[0] - of_inside, of_inside - of_everywhere - of_shift * extremes[1]
        for part in _parts(query):
            _add_up(of_alpha, part[1], of_rows[0][part])
            _add_up(of_beta, part[1], of_rows[1][part])
    return of_projected, of_alpha, of_beta


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    _, foreground, alpha, beta, ctx.scale_of_queries, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(foreground, alpha, beta, *output[1:])


def _gradients(ctx: Any, of_mixed: Tensor | None, backward: Callable[..., Any]) -> tuple[Tensor | None, ...]:
    if of_mixed is None:
        return (None,) * 6
    foreground, alpha, beta, qkv, extremes, columns, *attention = ctx.saved_tensors
    of_projected, of_alpha, of_beta = backward(
        of_mixed, qkv, foreground, alpha, beta, extremes, columns, attention, ctx.scale_of_queries
    )
    return of_projected, None, of_alpha, of_beta, None, None


class _ModulatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(_attend(*inputs))

    setup_context = staticmethod(_keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mixed: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, of_mixed, _attend_backward)


# The same as operators, which the compiler takes as they are: what it makes of whole expressions for a
# processor (`stmi.kernels.compiled_attention`) takes at least 1.4 times as long at 513 tokens, 1.6 at 1,025.
_operator = torch.library.custom_op("stmi::modulated_attention", _attend, mutates_args=())
_backward_operator = torch.library.custom_op(
    "stmi::modulated_attention_backward", _attend_backward, mutates_args=()
)


@_operator.register_fake
def _(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale_of_queries: float, keeps: bool
) -> list[Tensor]:
    batch, tokens, three, heads, width = projected.shape
    mixed, *rows = _outputs(projected)
    qkv = projected.new_empty((three, batch, heads, tokens, width))
    attention = [projected.new_empty((*qkv[0][part].shape[:2], tokens, tokens)) for part in _parts(qkv[0])]
    return [mixed, qkv, *rows, *attention] if keeps else [mixed]


@_backward_operator.register_fake
def _(
    of_mixed: Tensor, qkv: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    three, batch, heads, tokens, width = qkv.shape
    of_projected = qkv.new_empty((batch, tokens, three, heads, width))
    return of_projected, torch.empty_like(alpha), torch.empty_like(beta)


def _operator_gradients(ctx: Any, of_outputs: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, of_outputs[0], _backward_operator)


torch.library.register_autograd("stmi::modulated_attention", _operator_gradients, setup_context=_keep)


def both_foreground(foreground: Tensor) -> Tensor:
    """R = m m^T of foreground `(batch, tokens)`, boolean, `(batch, 1, tokens, tokens)`."""
    marks = foreground[:, None, :, None]
    return marks & marks.transpose(-2, -1)


def _strength(both: Tensor, alpha: Tensor, beta: Tensor, dtype: torch.dtype) -> Tensor:
    """By how much of itself each logit moves away from itself, `(batch, heads or 1, tokens, tokens)`.

    That is alpha or beta. What stays, 1 - alpha, loses more of them in bfloat16 than any other weight loses.
    """
    return torch.where(both, alpha.to(dtype), beta.to(dtype))


_WIDER = {torch.bfloat16: (torch.float32, torch.int32), torch.float32: (torch.float64, torch.int64)}
"""Types that hold a number and, in the bits behind it, its column; and the integers to write that with."""
_COLUMN = 0x7FFF
"""Bits of a column. The first of the 16 behind a bfloat16 stays zero, so that the column rounds away."""


def _row_extremes(logits: Tensor, scratch: "_Scratch") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maximum of each row and its column, minimum and its column, each `(..., rows, 1)`.

    A processor finds a maximum many numbers at a time, but its place one by one. So the column goes with the
    number, where the number leaves bits free.
    """
    last = logits.shape[-1] - 1
    if logits.device.type != "cpu" or logits.dtype not in _WIDER or last > _COLUMN:
        return *logits.max(dim=-1, keepdim=True), *logits.min(dim=-1, keepdim=True)
    wider, integer = _WIDER[logits.dtype]
    marked = scratch("marked", logits.shape, wider).copy_(logits)
    marked.view(integer).bitwise_or_(torch.arange(last + 1, dtype=integer))
    highest, lowest = marked.amax(dim=-1, keepdim=True), marked.amin(dim=-1, keepdim=True)
    # What is not a number has no column, and is to be found in the loss, not here.
    at_highest, at_lowest = ((x.view(integer) & _COLUMN).clamp_(max=last) for x in (highest, lowest))
    return highest.to(logits.dtype), at_highest, lowest.to(logits.dtype), at_lowest


def _of(heads: slice, shared: Tensor) -> Tensor:
    """What belongs to some heads of a tensor `(..., heads or 1, rows, columns)`."""
    return shared if shared.numel() == 1 or shared.shape[-3] == 1 else shared[..., heads, :, :]


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


class _Scratch:
    """Memory that the parts use one after the other: what was just used is in the processor's cache."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._memory: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        count = math.prod(shape)
        if name not in self._memory or len(self._memory[name]) < count:
            self._memory[name] = self._like.new_empty(count, dtype=dtype or self._like.dtype)
        return self._memory[name][:count].view(shape)
