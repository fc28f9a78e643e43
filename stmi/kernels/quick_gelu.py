"""QuickGELU, the activation of OpenAI's CLIP, and the MLP around it with a backward pass of its own.

The MLP keeps its input and h = 1.702 hidden(x): SiLU(h) is cheaper to compute twice than to keep. The factors
1.702 and 1 / 1.702 are those of the products before and after the activation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from stmi.kernels.linear import bias_gradient, under_autocast, weight_gradient

QUICK = 1.702
"""x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702."""


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it element by element."""
        return x * torch.sigmoid(QUICK * x)


def quick_gelu_mlp(x: Tensor, hidden: nn.Linear, out: nn.Linear) -> Tensor:
    """out(QuickGELU(hidden(x))), `(..., width)` to the same, keeping less for the backward pass."""
    inputs = (under_autocast(x), hidden.weight, hidden.bias, out.weight, out.bias)
    mixed, _ = _operator(*inputs) if torch.compiler.is_compiling() else _QuickGeluMlp.apply(*inputs)
    return mixed


def _mlp(
    x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor
) -> tuple[Tensor, Tensor]:
    """The MLP's output, like `x`, and h, `(rows, hidden)`."""
    rows = x.flatten(0, -2)
    with torch.autocast(x.device.type, enabled=False):
        first, second = weight_1.to(x.dtype).T, weight_2.to(x.dtype).T
        h = torch.addmm(bias_1.to(x.dtype), rows, first, beta=QUICK, alpha=QUICK)
        out = torch.addmm(bias_2.to(x.dtype), functional.silu(h), second, alpha=1 / QUICK)
    return out.view(*x.shape[:-1], -1), h


def _mlp_backward(
    of_mixed: Tensor, x: Tensor, h: Tensor, weight_1: Tensor, weight_2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the input, and of the first and second layer's weight and bias."""
    rows, of_out = x.flatten(0, -2), of_mixed.to(x.dtype).flatten(0, -2)
    with torch.autocast(x.device.type, enabled=False):
        of_hidden = of_out @ weight_2.to(x.dtype)
        torch.ops.aten.silu_backward.grad_input(of_hidden, h, grad_input=of_hidden)
        of_weight_2 = weight_gradient(of_out, functional.silu(h), weight_2.dtype).div_(QUICK)
        of_weight_1 = weight_gradient(of_hidden, rows, weight_1.dtype)
        of_x = (of_hidden @ weight_1.to(x.dtype)).view(x.shape)
        of_bias_1 = bias_gradient(of_hidden, weight_1.dtype)
        of_bias_2 = bias_gradient(of_out, weight_2.dtype)
    return of_x, of_weight_1, of_bias_1, of_weight_2, of_bias_2


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight_1, _, weight_2, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight_1, weight_2)


def _gradients(ctx: Any, of_mixed: Tensor | None, backward: Callable[..., Any]) -> tuple[Tensor | None, ...]:
    return (None,) * 5 if of_mixed is None else backward(of_mixed, *ctx.saved_tensors)


class _QuickGeluMlp(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return _mlp(*inputs)

    setup_context = staticmethod(_keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mixed: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, of_mixed, _mlp_backward)


# The same as operators, which the compiler takes as they are: on a processor PyTorch's SiLU takes a third of
# the time of what it would make of one.
_operator = torch.library.custom_op("stmi::quick_gelu_mlp", _mlp, mutates_args=())
_backward_operator = torch.library.custom_op("stmi::quick_gelu_mlp_backward", _mlp_backward, mutates_args=())


@_operator.register_fake
def _(x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty((*x.shape[:-1], len(bias_2))), x.new_empty((x.shape[:-1].numel(), len(bias_1)))


@_backward_operator.register_fake
def _(
    of_mixed: Tensor, x: Tensor, h: Tensor, weight_1: Tensor, weight_2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_biases = [weight.new_empty(len(weight)) for weight in (weight_1, weight_2)]
    of_weights = [weight.new_empty(weight.shape) for weight in (weight_1, weight_2)]
    return x.new_empty(x.shape), of_weights[0], of_biases[0], of_weights[1], of_biases[1]


def _operator_gradients(ctx: Any, of_mixed: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, of_mixed, _backward_operator)


torch.library.register_autograd("stmi::quick_gelu_mlp", _operator_gradients, setup_context=_keep)
