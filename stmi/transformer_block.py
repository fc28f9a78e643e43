"""CLIP's pre-norm transformer block, with attention that SFM can modulate."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from stmi.feature_modulation import ModulatedAttention

QUICK = 1.702
"""x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702."""


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it element by element."""
        return x * torch.sigmoid(QUICK * x)


def quick_gelu_mlp(x: Tensor, hidden: nn.Linear, out: nn.Linear) -> Tensor:
    """out(QuickGELU(hidden(x))), `(..., width)` to the same, keeping less for the backward pass."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _QuickGeluMlp.apply(x, hidden.weight, hidden.bias, out.weight, out.bias)


class _QuickGeluMlp(torch.autograd.Function):
    """An MLP that keeps its input and h = 1.702 hidden(x): SiLU(h) is cheaper to compute twice than to keep.

    The factors 1.702 and 1 / 1.702 are those of the products before and after the activation.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor
    ) -> Tensor:
        rows = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            first, second = weight_1.to(x.dtype).T, weight_2.to(x.dtype).T
            h = torch.addmm(bias_1.to(x.dtype), rows, first, beta=QUICK, alpha=QUICK)
            ctx.save_for_backward(rows, h, weight_1, weight_2)
            out = torch.addmm(bias_2.to(x.dtype), functional.silu(h), second, alpha=1 / QUICK)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        rows, h, weight_1, weight_2 = ctx.saved_tensors
        of_out = gradients[0].to(rows.dtype).flatten(0, -2)
        with torch.autocast(rows.device.type, enabled=False):
            of_hidden = torch.ops.aten.silu_backward(of_out @ weight_2.to(rows.dtype), h)
            of_weight_2 = of_out.T @ functional.silu(h)
            of_weight_1 = of_hidden.T @ rows
            of_x = (of_hidden @ weight_1.to(rows.dtype)).view(gradients[0].shape)
        return (
            of_x,
            of_weight_1.to(weight_1.dtype),
            of_hidden.sum(dim=0, dtype=weight_1.dtype),
            of_weight_2.to(weight_2.dtype).div_(QUICK),
            of_out.sum(dim=0, dtype=weight_2.dtype),
        )


class TransformerBlock(nn.Module):
    """CLIP's pre-norm transformer block, with modulated attention.

    Args:
        width: Token width.
        heads: Attention heads.
        mlp_width: Hidden width of the MLP.
        activation: The MLP's activation.
        logit_scale: As in `ModulatedAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        activation: nn.Module,
        logit_scale: str = "head_width",
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = ModulatedAttention(width, heads, logit_scale)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, mlp_width), "gelu": activation, "c_proj": nn.Linear(mlp_width, width)}
        )

    def forward(
        self, tokens: Tensor, foreground: Tensor | None = None, strength: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """One layer, `(batch, tokens, width)` to the same; arguments as in `ModulatedAttention`."""
        tokens = tokens + self.attn(self.ln_1(tokens), foreground, strength)
        normed, hidden, out = self.ln_2(tokens), self.mlp["c_fc"], self.mlp["c_proj"]
        # The compiler fuses the activation, and decides itself what to keep.
        if isinstance(self.mlp["gelu"], QuickGELU) and not torch.compiler.is_compiling():
            return tokens + quick_gelu_mlp(normed, cast(nn.Linear, hidden), cast(nn.Linear, out))
        return tokens + out(self.mlp["gelu"](hidden(normed)))
