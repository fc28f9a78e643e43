"""CLIP's pre-norm transformer block, with attention that SFM can modulate."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stmi.feature_modulation import ModulatedAttention


class QuickGELU(nn.Module):
    """The activation of OpenAI's CLIP: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it element by element."""
        return x * torch.sigmoid(1.702 * x)


def quick_gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear(QuickGELU(x)), `(..., width)` to `(..., out)`, keeping less for the backward pass."""
    return _QuickGeluLinear.apply(x, weight, bias)


class _QuickGeluLinear(torch.autograd.Function):
    """Linear(QuickGELU(x)) that keeps x alone: the activation is cheaper to compute twice than to keep."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            activated = torch.sigmoid_(1.702 * x).mul_(x)
            return functional.linear(activated, weight.to(x.dtype), bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            gate = torch.sigmoid_(1.702 * x)
            activated = gate * x
            rows = gradient.flatten(0, -2)
            of_weight = rows.T @ activated.flatten(0, -2)
            # d/dx of x s(x) with s' = 1.702 s (1 - s):  s + 1.702 x s (1 - s)
            slope = activated.mul_(1.702).addcmul_(activated, gate, value=-1).add_(gate)
            of_x = (gradient @ weight.to(x.dtype)).mul_(slope)
        return of_x, of_weight.to(weight.dtype), rows.sum(dim=0, dtype=bias.dtype)


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
        hidden, projection = self.mlp["c_fc"](self.ln_2(tokens)), cast(nn.Linear, self.mlp["c_proj"])
        # The compiler fuses the activation, and decides itself what to keep.
        if isinstance(self.mlp["gelu"], QuickGELU) and not torch.compiler.is_compiling():
            return tokens + quick_gelu_linear(hidden, projection.weight, projection.bias)
        return tokens + projection(self.mlp["gelu"](hidden))
