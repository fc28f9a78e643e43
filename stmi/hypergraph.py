"""CHI, cross-modal hypergraph interaction, and the fusion that follows it.

The semantic tokens of the three modalities are the nodes of one hypergraph. Every node is the centre of one
hyperedge, which contains the nodes similar to it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from stmi.config import ChiConfig, FusionConfig
from stmi.incidence import build_incidence
from stmi.token_reallocation import CrossAttention

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def hyperedge_means(nodes: Tensor, incidence: Tensor) -> Tensor:
    """The feature h_e of every hyperedge: the mean of its nodes.

    Args:
        nodes: `(batch, nodes, width)`.
        incidence: Boolean `(batch, nodes, hyperedges)`.

    Returns:
        `(batch, hyperedges, width)`; a hyperedge without nodes is zero.
    """
    by_hyperedge = incidence.to(nodes.dtype).transpose(-2, -1)
    return by_hyperedge @ nodes / by_hyperedge.sum(dim=-1, keepdim=True).clamp(min=1)


class HypergraphInteraction(nn.Module):
    """Hypergraph convolution with residual: equations 15-16.

        h_i' = sigma( sum_{e contains i} w_e h_e + b_i ) + h_i

    where h_e is the mean of the linearly mapped nodes of the hyperedge (Bai et al. 2021), w_e a learnable
    weight of the hyperedge and b_i a learnable bias of the node. The weights start at 1 / nodes, so that the
    sum does not grow with the number of hyperedges that contain a node.

    Args:
        nodes: Number of nodes, 3 (K + 1).
        width: Node width D.
        config: Incidence and sigma.
    """

    def __init__(self, nodes: int, width: int, config: ChiConfig) -> None:
        super().__init__()
        self.config = config
        self.activation = _ACTIVATIONS[config.activation]
        self.linear = nn.Linear(width, width, bias=False)
        self.hyperedge_weight = nn.Parameter(torch.full((nodes,), 1 / nodes))
        self.node_bias = nn.Parameter(torch.zeros(nodes, width))

    def forward(self, nodes: Tensor, incidence: Tensor | None = None) -> Tensor:
        """H `(batch, nodes, width)` to H' of the same shape; without an incidence it is built from H."""
        incidence = build_incidence(nodes, self.config) if incidence is None else incidence
        hyperedges = hyperedge_means(self.linear(nodes), incidence)
        weighted = hyperedges * self.hyperedge_weight[:, None]
        gathered = incidence.to(weighted.dtype) @ weighted
        return self.activation(gathered + self.node_bias) + nodes


class ReleasedHypergraphInteraction(nn.Module):
    """The released code's hypergraph convolution.

        H' = sigma( GroupNorm( H + mean over the node's hyperedges of (mean over the hyperedge of H W + c) ) )

    where sigma is SiLU in that code, with one norm group over all nodes and channels of a sample.

    Differs from the paper: no hyperedge weight, no node bias, and the residual comes before norm and
    activation.

    Args:
        width: Node width D.
        config: Incidence and sigma.
    """

    def __init__(self, width: int, config: ChiConfig) -> None:
        super().__init__()
        self.config = config
        self.activation = _ACTIVATIONS[config.activation]
        self.linear = nn.Linear(width, width)
        self.norm = nn.GroupNorm(1, width)

    def forward(self, nodes: Tensor, incidence: Tensor | None = None) -> Tensor:
        """H `(batch, nodes, width)` to H' of the same shape; without an incidence it is built from H."""
        incidence = build_incidence(nodes, self.config) if incidence is None else incidence
        hyperedges = hyperedge_means(self.linear(nodes), incidence)
        gathered = hyperedge_means(hyperedges, incidence.transpose(-2, -1))
        mixed = gathered + nodes
        # One group over all nodes and channels is a layer norm; this form needs no transposes, which slow the
        # compiled code.
        normed = functional.layer_norm(mixed, mixed.shape[1:], eps=self.norm.eps)
        return self.activation(normed * self.norm.weight + self.norm.bias)


class TokenMlp(nn.Module):
    """Instead of CHI, Table 4 B: a pre-norm MLP on each token, with residual.

    Args:
        width: Token width D; the hidden width is the same.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, nodes: Tensor) -> Tensor:
        """H `(batch, nodes, width)` to H' of the same shape."""
        return nodes + self.out(functional.gelu(self.hidden(self.norm(nodes))))


class TokenSelfAttention(nn.Module):
    """Instead of CHI, Table 4 C: pre-norm multi-head self-attention over all tokens, with residual.

    Args:
        width: Token width D.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)

    def forward(self, nodes: Tensor) -> Tensor:
        """H `(batch, nodes, width)` to H' of the same shape."""
        normed = self.norm(nodes)
        return nodes + self.attention(normed, normed)


def build_interaction(nodes: int, width: int, heads: int, config: ChiConfig) -> nn.Module | None:
    """The module of a config between STR and the fusion; None for nothing (H' = H)."""
    if not config.enabled:
        return None
    if config.mixer == "mlp":
        return TokenMlp(width)
    if config.mixer == "self_attention":
        return TokenSelfAttention(width, heads)
    if config.convolution == "released":
        return ReleasedHypergraphInteraction(width, config)
    return HypergraphInteraction(nodes, width, config)


class ClassTokenFusion(nn.Module):
    """Cross-attention from the three class tokens to the semantic tokens: equations 17-18.

        U = CrossAttn(G, H', H') + G

    with one head and scale 1 / sqrt(width).

    Args:
        width: Token width D.
        config: Dropout on the attention and on its output.
    """

    def __init__(self, width: int, config: FusionConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, class_tokens: Tensor, nodes: Tensor, uniforms: Tensor | None = None) -> Tensor:
        """Fuse the tokens.

        Args:
            class_tokens: G, `(batch, 3, width)`.
            nodes: H', `(batch, nodes, width)`.
            uniforms: Uniform random numbers from [0, 1) for dropout, `(batch, 3, nodes + width)`; None for no
                dropout.

        Returns:
            U, `(batch, 3, width)`.
        """
        logits = self.query(class_tokens) @ self.key(nodes).transpose(-2, -1)
        attention = (logits * class_tokens.shape[-1] ** -0.5).softmax(dim=-1)
        count = nodes.shape[1]
        if uniforms is not None:
            attention = _dropout(attention, self.dropout, uniforms[..., :count])
        mixed = self.out(attention.to(nodes.dtype) @ self.value(nodes))
        if uniforms is not None:
            mixed = _dropout(mixed, self.dropout, uniforms[..., count:])
        return mixed + class_tokens


def _dropout(x: Tensor, probability: float, uniforms: Tensor) -> Tensor:
    return x * (uniforms >= probability).to(x.dtype) / (1 - probability)
