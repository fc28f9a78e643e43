"""Which nodes of CHI's hypergraph share a hyperedge, and what the hyperedges of a sample are like.

Every node is the centre of one hyperedge. An incidence is boolean, `(batch, nodes, hyperedges)`: which nodes
are in the hyperedge of each centre. The rules differ in which nodes are near enough to the centre.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stmi.config import ChiConfig


def at_least_float32(x: Tensor) -> Tensor:
    """Float32, or a wider type that `x` already has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cosine_similarities(nodes: Tensor) -> Tensor:
    """Cosine similarity of each node to each other, `(batch, nodes, nodes)`, without a gradient.

    Args:
        nodes: `(batch, nodes, width)`.
    """
    # Under autocast the product would be bfloat16, whose rounding changes decisions near the threshold.
    with torch.autocast(nodes.device.type, enabled=False):
        unit = functional.normalize(at_least_float32(nodes.detach()), dim=-1)
        return unit @ unit.transpose(-2, -1)


def cosine_incidence(nodes: Tensor, threshold: float | Tensor) -> Tensor:
    """Which nodes belong to which hyperedge, as in the paper: `similarity[i, j] >= threshold`.

    Args:
        nodes: `(batch, nodes, width)`.
        threshold: tau, a cosine similarity.

    Returns:
        Boolean `(batch, nodes, hyperedges)`, symmetric, with a true diagonal.
    """
    # A node belongs to its own hyperedge, even where rounding puts its similarity to itself below tau = 1.
    return (cosine_similarities(nodes) >= threshold) | _each_alone(nodes)


def euclidean_incidence(nodes: Tensor, threshold: float) -> Tensor:
    """Which nodes belong to which hyperedge: `distance[i, j] < threshold`, of unnormalised tokens.

    Differs from the paper: this is the released code's rule.

    Args:
        nodes: `(batch, nodes, width)`.
        threshold: Euclidean distance.

    Returns:
        Boolean `(batch, nodes, hyperedges)`, symmetric, with a true diagonal.
    """
    nodes = at_least_float32(nodes.detach())
    return torch.cdist(nodes, nodes, compute_mode="donot_use_mm_for_euclid_dist") < threshold


def nearest_incidence(nodes: Tensor, neighbours: int) -> Tensor:
    """Which nodes belong to which hyperedge: its centre, and the nodes that are most similar to that.

    Differs from the paper: how many nodes meet does not depend on how similar tokens are at all.

    Args:
        nodes: `(batch, nodes, width)`.
        neighbours: Nodes beside the centre; all others where there are fewer.

    Returns:
        Boolean `(batch, nodes, hyperedges)`, in general not symmetric, with a true diagonal. Of equally
        similar nodes the first ones are taken.
    """
    # Nothing is more similar to a centre than itself, whatever rounding says.
    similarity = cosine_similarities(nodes).masked_fill(_each_alone(nodes), torch.inf)
    chosen = similarity.sort(dim=-2, descending=True, stable=True).indices[:, : neighbours + 1]
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(-2, chosen, True)


def density_threshold(similarity: Tensor, density: float) -> Tensor:
    """The tau at which a share of the incidences of a batch is true.

    Args:
        similarity: As `cosine_similarities` gives it.
        density: That share, the diagonal counted.

    Returns:
        A scalar: a quantile of the similarities of different nodes.
    """
    nodes = similarity.shape[-1]
    others = (density * nodes - 1) / (nodes - 1)
    different = ~torch.eye(nodes, dtype=torch.bool, device=similarity.device)
    return similarity[:, different].flatten().quantile(1 - min(max(others, 0.0), 1.0))


def build_incidence(nodes: Tensor, config: ChiConfig) -> Tensor:
    """The incidence by the rule of a config, boolean `(batch, nodes, hyperedges)`."""
    if config.incidence == "cosine":
        return cosine_incidence(nodes, config.similarity_threshold)
    return euclidean_incidence(nodes, config.distance_threshold)


def _each_alone(nodes: Tensor) -> Tensor:
    return torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)


@dataclass(frozen=True)
class HyperedgeFacts:
    """What the hyperedges of each sample are like, each `(batch,)`, float32.

    Attributes:
        density: Share of the incidences that are true. Where each node is alone, it is 1 / nodes.
        size: Mean number of nodes in a hyperedge.
        alone: Share of the hyperedges that hold their centre alone, which then meets no other node.
        across: Share of the hyperedges that hold tokens of the images of more than one modality.
        by_text: Share that joins modalities only if a copy of the text token counts as of its modality.
    """

    density: Tensor
    size: Tensor
    alone: Tensor
    across: Tensor
    by_text: Tensor


def hyperedge_facts(incidence: Tensor, modalities: int, has_text_copies: bool) -> HyperedgeFacts:
    """What the hyperedges of each sample are like.

    Args:
        incidence: Boolean `(batch, nodes, hyperedges)`, the nodes of a modality beside each other.
        modalities: Their number. A node left over after them is a text token of no modality.
        has_text_copies: Whether the last node of each modality is a copy of the text token.
    """
    each = incidence.shape[1] // modalities
    by_modality = incidence[:, : modalities * each].unflatten(1, (modalities, each))
    images = by_modality[:, :, : each - has_text_copies].any(dim=2).sum(dim=1) > 1
    anything = by_modality.any(dim=2).sum(dim=1) > 1
    sizes = incidence.sum(dim=1)

    def mean(values: Tensor) -> Tensor:
        return values.float().flatten(1).mean(dim=1)

    return HyperedgeFacts(
        density=mean(incidence),
        size=mean(sizes),
        alone=mean(sizes == 1),
        across=mean(images),
        by_text=mean(anything & ~images),
    )
