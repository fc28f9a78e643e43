"""SFM, segmentation-guided feature modulation: attention that prefers the foreground.

For tokens i, j with foreground m, and R = m m^T,

    A = Q K^T
    S = alpha * R * (max_row(A) - A) - beta * (1 - R) * (A - min_row(A))
    attention = softmax((A + S) / sqrt(D))

A + S is a linear interpolation of A: towards the maximum of its row with weight alpha where both tokens are
foreground, and towards the minimum of its row with weight beta elsewhere. `modulate` and
`modulated_attention` are these lines. Training runs faster forms of them, chosen in `stmi.kernels.forms`.
"""

import torch
from torch import Tensor, nn

from stmi.config import SfmConfig
from stmi.kernels import forms
from stmi.modality import MODALITIES


def token_mask(foreground: Tensor, threshold: float) -> Tensor:
    """Which patches are foreground: equation 2, without the class token.

    Args:
        foreground: Share of each patch that the mask covers, in [0, 1], `(batch, patches)`.
        threshold: Share that makes a patch foreground; 0 means any overlap.

    Returns:
        Boolean tensor of the same shape.
    """
    return foreground > 0 if threshold == 0 else foreground >= threshold


def perturbation_probability(config: SfmConfig, layers: int) -> Tensor:
    """The probability p for every layer and modality.

    Args:
        config: The setting of p.
        layers: Transformer layers of the image tower.

    Returns:
        float32 `(layers or 1, 1, modalities or 1, 1)`, on the CPU.

    Raises:
        ValueError: A list does not have one number for each layer.
    """
    given = config.perturbation
    per_modality = [given[name] for name in MODALITIES] if isinstance(given, dict) else [given]
    for p in per_modality:
        if isinstance(p, tuple) and len(p) != layers:
            raise ValueError(
                f"model.sfm.perturbation has a list of {len(p)} numbers, expected {layers}, one for each "
                "layer of the image tower"
            )
    columns = [torch.tensor(p, dtype=torch.float32, device="cpu").reshape(-1, 1, 1) for p in per_modality]
    return torch.stack(torch.broadcast_tensors(*columns), dim=2)


def perturb(mask: Tensor, probability: Tensor | float, uniforms: Tensor) -> Tensor:
    """Turn some background tokens into foreground; foreground tokens stay (the paper's mask perturbation).

    Args:
        mask: Boolean, `(..., patches)`.
        probability: p, the probability that a background token flips.
        uniforms: Uniform random numbers from [0, 1), of a shape that broadcasts with those of the mask and p.

    Returns:
        Boolean tensor of the common shape.
    """
    return mask | (uniforms < probability)


def modulate(logits: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The modulated logits A + S: equations 4-7.

    Args:
        logits: A, `(batch, heads, tokens, tokens)`.
        foreground: m, boolean with the class token first (always True), `(batch, tokens)`.
        alpha: Strength of the enhancement, broadcastable to `(heads, 1, 1)`.
        beta: Strength of the suppression, likewise.
    """
    m_pos = logits.amax(dim=-1, keepdim=True) - logits  # (4)
    m_neg = logits - logits.amin(dim=-1, keepdim=True)  # (5)
    m = foreground[:, None, :, None]
    r = m & m.mT  # (6)
    s = torch.where(r, alpha * m_pos, -beta * m_neg)  # (7)
    return logits + s


def modulated_attention(
    projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Attention with modulated logits: equations 3 and 8, as written.

    Args:
        projected: Queries, keys and values, `(batch, tokens, 3, heads, head width)`.
        foreground: m, boolean with the class token first, `(batch, tokens)`.
        alpha: Strength of the enhancement, `(heads or 1, 1, 1)`.
        beta: Strength of the suppression, likewise.
        scale: 1 / sqrt(D).

    Returns:
        `(batch, tokens, heads, head width)`.
    """
    query, key, value = projected.permute(2, 0, 3, 1, 4)
    logits = query @ key.mT  # (3)
    attention = (modulate(logits, foreground, alpha, beta) * scale).softmax(dim=-1)  # (8)
    return (attention.to(value.dtype) @ value).transpose(1, 2)


class ModulationStrength(nn.Module):
    """The learnable alpha and beta of every layer, shared as in Table 5.

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

    def for_layer(self, layer: int) -> tuple[Tensor, Tensor] | None:
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
        projected = forms.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        projected = projected.view(batch, count, 3, self.heads, -1)
        if foreground is None or strength is None:
            query, key, value = projected.permute(2, 0, 3, 1, 4)
            attended = forms.attention(query, key, value, self.scale).transpose(1, 2)
        else:
            attend = forms.choose(forms.MODULATED_ATTENTION, modulated_attention, projected)
            attended = attend(projected, foreground, *strength, self.scale)
        return forms.linear(attended.reshape(batch, count, width), self.out_proj.weight, self.out_proj.bias)
