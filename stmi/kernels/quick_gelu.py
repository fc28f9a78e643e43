"""QuickGELU, the activation of OpenAI's CLIP, and the MLP around it with a backward pass of its own.

The MLP keeps its input and h = 1.702 hidden(x): computing SiLU(h) twice is cheaper than keeping it. The
factors 1.702 and 1 / 1.702 are applied in the matrix products before and after the activation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from stmi.kernels.linear import bias_gradient, under_autocast, weight_gradient
from stmi.kernels.operators import with_own_gradient

QUICK = 1.702
"""x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702."""


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it element by element."""
        return x * torch.sigmoid(QUICK * x)


def quick_gelu_mlp(x: Tensor, hidden: nn.Linear, out: nn.Linear) -> Tensor:
    """out(QuickGELU(hidden(x))), `(..., width)` to the same, keeping less for the backward pass."""
    return _operator(under_autocast(x), hidden.weight, hidden.bias, out.weight, out.bias)


def _forward(x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> list[Tensor]:
    """The MLP's output, like `x`, and h, `(rows, hidden)`."""
    rows = x.flatten(0, -2)
    with torch.autocast(x.device.type, enabled=False):
        first, second = weight_1.to(x.dtype).T, weight_2.to(x.dtype).T
        h = torch.addmm(bias_1.to(x.dtype), rows, first, beta=QUICK, alpha=QUICK)
        out = torch.addmm(bias_2.to(x.dtype), functional.silu(h), second, alpha=1 / QUICK)
    return [out.view(*x.shape[:-1], -1), h]


def _backward(
    grad_output: Tensor, kept: list[Tensor], x: Tensor, weight_1: Tensor, weight_2: Tensor
) -> list[Tensor]:
    """Gradients of the input, and of the first and second layer's weight and bias."""
    [h] = kept
    rows, grad_rows = x.flatten(0, -2), grad_output.to(x.dtype).flatten(0, -2)
    with torch.autocast(x.device.type, enabled=False):
        grad_hidden = grad_rows @ weight_2.to(x.dtype)
        torch.ops.aten.silu_backward.grad_input(grad_hidden, h, grad_input=grad_hidden)
        grad_weight_2 = weight_gradient(grad_rows, functional.silu(h), weight_2.dtype).div_(QUICK)
        grad_weight_1 = weight_gradient(grad_hidden, rows, weight_1.dtype)
        grad_x = (grad_hidden @ weight_1.to(x.dtype)).view(x.shape)
        grad_bias_1 = bias_gradient(grad_hidden, weight_1.dtype)
        grad_bias_2 = bias_gradient(grad_rows, weight_2.dtype)
    return [grad_x, grad_weight_1, grad_bias_1, grad_weight_2, grad_bias_2]


# An operator also because, on a CPU, PyTorch's SiLU takes a third of the time of the compiler's own.
_operator = with_own_gradient(
    "quick_gelu_mlp", _forward, _backward, needed=(0, 1, 3), trained=(0, 1, 2, 3, 4)
)
