"""The transformer block of the image tower: attention that SFM can modulate, and an MLP."""

from torch import Tensor, nn

from stmi.feature_modulation import ModulatedAttention
from stmi.kernels import forms
from stmi.kernels.quick_gelu import QuickGELU


class TransformerBlock(nn.Module):
    """CLIP's pre-norm transformer block, with modulated attention.

    Args:
        width: Token width.
        heads: Attention heads.
        mlp_width: Hidden width of the MLP.
        activation: The MLP's activation.
        logit_scale: The same argument of `ModulatedAttention`.
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
        """One layer, `(batch, tokens, width)` to the same; arguments are those of `ModulatedAttention`."""
        tokens = tokens + self.attn(self.ln_1(tokens), foreground, strength)
        normed = self.ln_2(tokens)
        table = forms.QUICK_GELU_MLP if isinstance(self.mlp["gelu"], QuickGELU) else ()
        mlp = forms.choose(table, self._plain_mlp, normed)
        return tokens + mlp(normed, self.mlp["c_fc"], self.mlp["c_proj"])

    def _plain_mlp(self, x: Tensor, hidden: nn.Linear, out: nn.Linear) -> Tensor:
        return out(self.mlp["gelu"](hidden(x)))
