"""Linear layers whose gradients are computed in the forms that are fast in bfloat16 on a CPU.

With AMX, PyTorch's product G^T X for the gradient of the weight takes up to twice as long as a product whose
left operand is contiguous in memory, unless it is square. A copy of the transpose of the narrower matrix
takes a tenth of that time. With AVX-512 alone, both forms take equally long.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROWS_AT_ONCE = 1024
"""Rows that are transposed at a time: all at once takes 1.5 times as long."""


def transposing_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `torch.nn.functional.linear`, also under autocast: `(..., rows, in)` to `(..., rows, out)`."""
    x = under_autocast(x)
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        return functional.linear(x, weight, bias)  # PyTorch refuses it, with its own message
    return _Linear.apply(x, weight, bias)


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which a matrix product of `x` is computed, also under autocast."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def under_autocast(x: Tensor) -> Tensor:
    """The input of a matrix product in the type that autocast gives it."""
    return x.to(product_dtype(x))


def weight_gradient(grad_output: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """G^T X, the gradient of the weight of x W^T, `(out, in)`.

    Args:
        grad_output: G, `(rows, out)`.
        x: X, `(rows, in)`.
        dtype: Type of the result.
    """
    if not _is_slow(grad_output) or grad_output.shape[1] == x.shape[1]:
        # Square products are fast already: at 768 one takes 2.8 ms, with a copied transpose 5.9.
        return (grad_output.T @ x).to(dtype)
    if grad_output.shape[1] < x.shape[1]:
        return (_transpose(grad_output) @ x).to(dtype)
    product = _transpose(x) @ grad_output
    return product.new_empty(product.shape[::-1], dtype=dtype).copy_(product.T)


def bias_gradient(grad_output: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of the columns of `(rows, out)`, `(out,)`."""
    if _is_slow(grad_output) and not torch.compiler.is_compiling():
        # Eight times as fast as a sum, and the product accumulates in float32. The compiler instead fuses the
        # sum with the expression that writes the rows.
        return (grad_output.new_ones(1, len(grad_output)) @ grad_output)[0].to(dtype)
    return grad_output.sum(dim=0, dtype=dtype)


def _is_slow(x: Tensor) -> bool:
    """Whether PyTorch's own forms are slow for this type on this device."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def _transpose(x: Tensor) -> Tensor:
    transposed = x.new_empty(x.shape[::-1])
    for start in range(0, len(x), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        transposed[:, rows] = x[rows].T
    return transposed


def _input_and_weight_gradients(grad_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the input, `(rows, in)`, and of the weight."""
    with torch.autocast(x.device.type, enabled=False):
        return grad_output @ weight.to(x.dtype), weight_gradient(grad_output, x, weight.dtype)


# An operator, because the compiler would replace the copy by a view of its source.
_operator = torch.library.custom_op(
    "stmi::products_of_linear_gradients", _input_and_weight_gradients, mutates_args=()
)
_operator.register_fake(_input_and_weight_gradients)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
            # A product with a bias begins with copies of it; the compiler adds it where it reads the product.
            if torch.compiler.is_compiling():
                return x @ weight.T + bias
            return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = grad_output.to(x.dtype).flatten(0, -2)
        multiply = _operator if torch.compiler.is_compiling() else _input_and_weight_gradients
        grad_x, grad_weight = multiply(rows, x.flatten(0, -2), weight)
        return grad_x.view(x.shape), grad_weight, bias_gradient(rows, weight.dtype)
