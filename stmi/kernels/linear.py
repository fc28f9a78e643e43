"""Linear layers whose gradients are computed in the forms that are fast in bfloat16 on a processor.

PyTorch's product G^T X for the weight takes twice as long there as one whose left operand lies in memory row
by row, unless it is square. To copy the narrower of the two as its transpose takes a tenth of that time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS_AT_ONCE = 1024
"""Rows that are transposed at a time: all at once takes half as long again."""


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `torch.nn.functional.linear`, also under autocast: `(..., rows, in)` to `(..., rows, out)`."""
    x = under_autocast(x)
    # Without autocast PyTorch refuses a weight of another type, and is to do so here.
    fits = weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)
    return _Linear.apply(x, weight, bias) if _is_slow(x) and fits else functional.linear(x, weight, bias)


def under_autocast(x: Tensor) -> Tensor:
    """What autocast makes of the input of a product."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def weight_gradient(of_out: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """G^T X, the gradient of the weight of x W^T, `(out, in)`.

    Args:
        of_out: G, `(rows, out)`.
        x: X, `(rows, in)`.
        dtype: Type of the result.
    """
    if not _is_slow(of_out) or of_out.shape[1] == x.shape[1]:
        # Square ones are fast already: at 768 the product takes 2.8 ms, with a copied transpose 5.9.
        return (of_out.T @ x).to(dtype)
    if of_out.shape[1] < x.shape[1]:
        return (_transpose(of_out) @ x).to(dtype)
    product = _transpose(x) @ of_out
    return product.new_empty(product.shape[::-1], dtype=dtype).copy_(product.T)


def bias_gradient(of_out: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of the columns of `(rows, out)`, `(out,)`."""
    if _is_slow(of_out) and not torch.compiler.is_compiling():
        # Eight times as fast as a sum, and the product adds up in float32 inside. The compiler adds up where
        # it writes the rows.
        return (of_out.new_ones(1, len(of_out)) @ of_out)[0].to(dtype)
    return of_out.sum(dim=0, dtype=dtype)


def _is_slow(x: Tensor) -> bool:
    """Whether this is where PyTorch's own forms are the slow ones."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def _transpose(x: Tensor) -> Tensor:
    transposed = x.new_empty(x.shape[::-1])
    for start in range(0, len(x), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        transposed[:, rows] = x[rows].T
    return transposed


def _products_of_gradients(of_out: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the input, `(rows, in)`, and of the weight."""
    with torch.autocast(x.device.type, enabled=False):
        return of_out @ weight.to(x.dtype), weight_gradient(of_out, x, weight.dtype)


# The same as an operator, which the compiler takes as it is: for a copy it would take a view of the source.
_operator = torch.library.custom_op(
    "stmi::products_of_linear_gradients", _products_of_gradients, mutates_args=()
)


@_operator.register_fake
def _(of_out: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
            # A product with a bias begins as copies of it; the compiler adds it where it reads the product.
            if torch.compiler.is_compiling():
                return x @ weight.T + bias
            return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = of_out.to(x.dtype).flatten(0, -2)
        multiply = _operator if torch.compiler.is_compiling() else _products_of_gradients
        of_x, of_weight = multiply(rows, x.flatten(0, -2), weight)
        return of_x.view(x.shape), of_weight, bias_gradient(rows, weight.dtype)
