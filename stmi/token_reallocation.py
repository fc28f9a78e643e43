"""STR, semantic token reallocation: a few learnable queries and the text gather the patch tokens.

For one modality with patch tokens F (N, D), queries Q (K, D) and text T (D):

    Q' = [Q; T]
    Z  = CrossAttn(Q', F, F) + Q'
    F~ = FFN(Z) + Z

No patch token is dropped: each contributes to every semantic token with some weight.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from stmi.config import StrConfig
from stmi.kernels.forms import attention


class CrossAttention(nn.Module):
    """Multi-head cross-attention, scale 1 / sqrt(width / heads).

    Args:
        width: Token width of queries, keys and values.
        heads: Number of heads.

    Raises:
        ValueError: The heads do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"str.heads={heads} does not divide the token width {width}; set one that does")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Queries `(batch, K, width)` over patches `(batch, N, width)`, to `(batch, K, width)`."""
        batch, count, width = queries.shape
        query = self.q(queries).view(batch, count, self.heads, -1).transpose(1, 2)
        key, value = self.kv(patches).view(batch, patches.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(attention(query, key, value).transpose(1, 2).reshape(batch, count, width))


class ReallocationBlock(nn.Module):
    """Cross-attention and FFN, equations 12-13, as a pre-norm block.

    The paper does not say where it normalises. As in the released code, there is a norm (eps 1e-6) before the
    attention, with the same weights for queries and patches, and one before the FFN.

    Args:
        width: Token width.
        heads: Heads of the cross-attention.
        mlp_ratio: Hidden width of the FFN over the token width.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Q' `(batch, K + 1, width)` and F `(batch, N, width)` to F~ `(batch, K + 1, width)`."""
        attended = queries + self.attn(self.norm1(queries), self.norm1(patches))
        return attended + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(attended))))


class TokenReallocation(nn.Module):
    """Semantic tokens of one modality: patch tokens, queries and text of equations 9-11, through the block.

    Args:
        width: Token width D.
        config: K, heads and FFN width.
    """

    def __init__(self, width: int, config: StrConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.tokens, width))
        self.block = ReallocationBlock(width, config.heads, config.mlp_ratio)

    def forward(self, patches: Tensor, text: Tensor | None) -> Tensor:
        """Gather the patch tokens.

        Args:
            patches: F, `(batch, N, D)`.
            text: T, `(batch, D)`; None for only the learnable queries, Q' = Q.

        Returns:
            Semantic tokens F~, that of the text last, `(batch, K + 1, D)`; `(batch, K, D)` without text.
        """
        queries = self.queries.to(patches.dtype).expand(patches.shape[0], -1, -1)
        if text is not None:
            queries = torch.cat([queries, text[:, None].to(patches.dtype)], dim=1)
        return self.block(queries, patches)
