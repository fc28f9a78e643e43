"""SFM, segmentation-guided feature modulation: attention that leans towards the foreground.

Equations 2-8 of the paper. For tokens i, j with foreground m, and R = m m^T,

    S = alpha * R * (max_row(A) - A) - beta * (1 - R) * (A - min_row(A))        (7)
    attention = softmax((A + S) / sqrt(D))                                      (8)

where A = Q K^T. A + S is a linear interpolation of A: towards its row's maximum with weight alpha
where both tokens are foreground, towards its row's minimum with weight beta elsewhere. The scale
1 / sqrt(D) commutes with that, so the queries are scaled first.
"""

import torch
from torch import Tensor, nn

from stmi.config import SfmConfig
from stmi.kernels.capabilities import compiles_for_gpu
from stmi.kernels.compiled_attention import compiled_attention
from stmi.kernels.linear import linear
from stmi.kernels.modulated_attention import modulated_attention
from stmi.kernels.plain_attention import attend
from stmi.modality import MODALITIES

FUSED_TOKENS = 256
"""Up to so many tokens what the compiler makes of whole expressions is the faster way on a processor."""


def token_mask(foreground: Tensor, threshold: float) -> Tensor:
    """Which patches are foreground, eq. 2 (without the class token).

    Args:
        foreground: Share of each patch that the mask covers, in [0, 1], `(batch, patches)`.
        threshold: Share that makes a patch foreground; 0 means any overlap.

    Returns:
        Boolean tensor of the same shape.
    """
    return foreground > 0 if threshold == 0 else foreground >= threshold


def perturbation_probability(config: SfmConfig, layers: int) -> Tensor:
    """The p of every layer and modality.

    Args:
        config: p as it is set.
        layers: Transformer layers of the image tower.

    Returns:
        float32 `(layers or 1, 1, modalities or 1, 1)`, on the processor.

    Raises:
        ValueError: There is a list that has not one number for each layer.
    """
    given = config.perturbation
    of_modalities = [given[name] for name in MODALITIES] if isinstance(given, dict) else [given]
    for one in of_modalities:
        if isinstance(one, tuple) and len(one) != layers:
            raise ValueError(
                f"model.sfm.perturbation has a list of {len(one)} numbers, expected {layers}, one for each "
                "layer of the image tower"
            )
    columns = [
        torch.tensor(one, dtype=torch.float32, device="cpu").reshape(-1, 1, 1) for one in of_modalities
    ]
    return torch.stack(torch.broadcast_tensors(*columns), dim=2)


def perturb(mask: Tensor, probability: Tensor | float, uniforms: Tensor) -> Tensor:
    """Take some background tokens for foreground; foreground tokens stay (text below eq. 6).

    Args:
        mask: Boolean, `(..., patches)`.
        probability: p, the chance that one background token flips.
        uniforms: Draws from [0, 1), of a shape that broadcasts with the mask's and p's.

    Returns:
        Boolean tensor of the common shape.
    """
    return mask | (uniforms < probability)


def modulate(logits: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Attention logits after modulation: A + S of equations 4-7.

    Args:
        logits: A, `(batch, heads, tokens, tokens)`.
        foreground: Boolean with the class token first (always True), `(batch, tokens)`.
        alpha: Strength of the enhancement, broadcastable to `(heads, 1, 1)`.
        beta: Strength of the suppression, likewise.
    """
    both = (foreground[:, :, None] & foreground[:, None, :])[:, None]
    highest = logits.amax(dim=-1, keepdim=True)
    lowest = logits.amin(dim=-1, keepdim=True)
    return torch.where(both, logits + alpha * (highest - logits), logits - beta * (logits - lowest))


def attend_modulated(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Equation 8 in the fastest way; arguments and result as of `modulated_attention`."""
    is_short = projected.shape[1] <= FUSED_TOKENS
    if compiles_for_gpu(projected) or (torch.compiler.is_compiling() and is_short):
        return compiled_attention(projected, foreground, alpha, beta, scale)
    return modulated_attention(projected, foreground, alpha, beta, scale)


class ModulationStrength(nn.Module):
    """The learnable alpha and beta of every layer, shared as Table 5 asks.

    Args:
        config: The sharing and the initial values.
        layers: Transformer layers of the image tower.
        heads: Attention heads of a layer.
    """

    def __init__(self, config: SfmConfig, layers: int, heads: int) -> None:
        super().__init__()
        half = layers // 2
        modulated = {
            "early_half": range(half),
            "late_half": range(half, layers),
        }.get(config.sharing, range(layers))
        self.pair_of_layer: dict[int, int] = {
            layer: 0 if config.sharing == "all_layers" else pair for pair, layer in enumerate(modulated)
        }
        pairs = len(set(self.pair_of_layer.values()))
        shape = (pairs, heads if config.sharing == "per_head" else 1, 1, 1)
        self.alpha = nn.Parameter(config.initial_strength + config.initial_strength_std * torch.randn(shape))
        self.beta = nn.Parameter(config.initial_strength + config.initial_strength_std * torch.randn(shape))

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Alpha and beta of a layer, each `(heads or 1, 1, 1)`, or None where it is not modulated."""
        pair = self.pair_of_layer.get(layer)
        return None if pair is None else (self.alpha[pair], self.beta[pair])


class ModulatedAttention(nn.Module):
    """Multi-head self-attention with the parameters of `torch.nn.MultiheadAttention`, and SFM.

    Args:
        width: Token width.
        heads: Number of heads.
        logit_scale: Whether all logits are scaled by 1 / sqrt(width / heads) or by 1 / sqrt(width).
    """

    def __init__(self, width: int, heads: int, logit_scale: str = "head_width") -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads if logit_scale == "head_width" else width) ** -0.5
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, tokens: Tensor, foreground: Tensor | None, strength: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Attend.

        Args:
            tokens: `(batch, tokens, width)`.
            foreground: Boolean with the class token first, `(batch, tokens)`, or None for plain attention.
            strength: Alpha and beta, or None for plain attention.

        Returns:
            `(batch, tokens, width)`.
        """
        batch, count, width = tokens.shape
        projected = linear(tokens, self.in_proj_weight, self.in_proj_bias)
        projected = projected.view(batch, count, 3, self.heads, -1)
        if foreground is None or strength is None:
            query, key, value = projected.permute(2, 0, 3, 1, 4)
            mixed = attend(query, key, value, self.scale).transpose(1, 2)
        else:
            mixed = attend_modulated(projected, foreground, *strength, self.scale)
        return linear(mixed.reshape(batch, count, width), self.out_proj.weight, self.out_proj.bias)
