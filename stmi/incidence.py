"""Which nodes of CHI's hypergraph share a hyperedge, and what the hyperedges of a sample are like.

Every node is the centre of one hyperedge. An incidence is boolean, `(batch, nodes, hyperedges)`: which nodes
are in the hyperedge of each centre. The rules differ in which nodes are near enough to the centre.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from stmi.config import ChiConfig
from stmi.modality import MODALITIES

THRESHOLD_MOMENTUM = 0.1
"""Share of a batch in the running estimate of tau, as of a batch norm's statistics."""


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


def density_threshold(similarities: Tensor, density: float, nodes: int) -> Tensor:
    """The tau at which a share of the incidences of a batch is true.

    Args:
        similarities: Similarities of each two different nodes of all samples, once; any shape.
        density: That share, the diagonal counted.
        nodes: Nodes of a sample.

    Returns:
        A scalar: one of the similarities; the highest where the density asks for less than one pair.
    """
    pairs = similarities.numel()
    meeting = round((density * nodes - 1) / (nodes - 1) * pairs)
    return similarities.flatten().kthvalue(pairs - min(max(meeting, 1), pairs) + 1).values


def build_incidence(nodes: Tensor, config: ChiConfig, threshold: float | Tensor | None = None) -> Tensor:
    """The incidence by the rule of a config, boolean `(batch, nodes, hyperedges)`.

    Args:
        nodes: `(batch, nodes, width)`.
        config: The rule.
        threshold: tau, where it is not that of the config.
    """
    if config.incidence == "euclidean":
        return euclidean_incidence(nodes, config.distance_threshold)
    if config.incidence == "nearest":
        return nearest_incidence(nodes, config.neighbours)
    return cosine_incidence(nodes, config.similarity_threshold if threshold is None else threshold)


def _each_alone(nodes: Tensor) -> Tensor:
    return torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)


@dataclass(frozen=True)
class HyperedgeFacts:
    """What the hyperedges of each sample are like, each `(batch,)`, float32.

    Attributes:
        density: Share of the incidences that are true. Where each node is alone, it is 1 / nodes.
        size: Mean number of nodes in a hyperedge.
        alone: Share of the tokens of images whose hyperedge holds them alone: they meet no other node.
        across: Share of the hyperedges that hold tokens of the images of more than one modality.
        by_text: Share that joins modalities only if a copy of the text token counts as of its modality.
    """

    density: Tensor
    size: Tensor
    alone: Tensor
    across: Tensor
    by_text: Tensor

    def stacked(self) -> Tensor:
        """All of them in the order of `FACTS`, `(batch, facts)`."""
        return torch.stack([getattr(self, name) for name in FACTS], dim=1)


FACTS = tuple(field.name for field in fields(HyperedgeFacts))


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
    of_images = sizes[:, : modalities * each].unflatten(1, (modalities, each))[..., : each - has_text_copies]

    def mean(values: Tensor) -> Tensor:
        return values.float().flatten(1).mean(dim=1)

    return HyperedgeFacts(
        density=mean(incidence),
        size=mean(sizes),
        alone=mean(of_images == 1),
        across=mean(images),
        by_text=mean(anything & ~images),
    )


@dataclass(frozen=True)
class Hypergraph:
    """The hypergraphs of a batch.

    Attributes:
        incidence: Boolean `(batch, nodes, hyperedges)`.
        facts: What the hyperedges are like; without nodes that are left out.
        similarities: Similarities of each two different nodes, `(batch, pairs)`, in training with a rule
            whose tau follows them; else None.
    """

    incidence: Tensor
    facts: HyperedgeFacts
    similarities: Tensor | None


class IncidenceRule(nn.Module):
    """Which nodes share a hyperedge, and the running estimate of tau where that follows the batches.

    A step reads the estimate of the steps before it, so that a sample's hyperedges depend neither on the
    other samples of its batch nor on the worker that has it.

    Args:
        config: The rule.
        nodes: Number of nodes of a sample.
        has_text_copies: Whether the last node of each modality is a copy of the text token.

    Attributes:
        threshold: The running estimate, a scalar; only with `incidence=density`.
    """

    threshold: Tensor

    def __init__(self, config: ChiConfig, nodes: int, has_text_copies: bool) -> None:
        super().__init__()
        self.config = config
        self.follows_batches = config.incidence == "density"
        self.leaves_out_copies = has_text_copies and config.exclude_text_copies
        self.has_text_copies = has_text_copies and not config.exclude_text_copies
        each = nodes // len(MODALITIES)
        is_copy = [self.leaves_out_copies and node % each == each - 1 for node in range(nodes)]
        self.kept = [node for node in range(nodes) if not is_copy[node]]
        if self.follows_batches:
            self.register_buffer("threshold", torch.tensor(config.similarity_threshold))

    def forward(self, nodes: Tensor) -> Hypergraph:
        """The hypergraphs of a batch of nodes `(batch, nodes, width)`."""
        kept = nodes[:, self.kept] if self.leaves_out_copies else nodes
        incidence = build_incidence(kept, self.config, self.threshold if self.follows_batches else None)
        facts = hyperedge_facts(incidence, len(MODALITIES), self.has_text_copies)
        similarities = None
        if self.follows_batches and self.training:
            above = torch.ones(kept.shape[1], kept.shape[1], dtype=torch.bool, device=nodes.device).triu(1)
            similarities = cosine_similarities(kept)[:, above]
        if self.leaves_out_copies:
            positions = torch.tensor(self.kept, device=nodes.device)
            whole = _each_alone(nodes).repeat(nodes.shape[0], 1, 1)
            whole[:, positions[:, None], positions] = incidence
            incidence = whole
        return Hypergraph(incidence, facts, similarities)

    @torch.no_grad()
    def follow(self, similarities: Tensor) -> None:
        """Take the tau of a global batch into the running estimate; every worker does the same.

        Args:
            similarities: Similarities of `Hypergraph`, of all samples of the batch.
        """
        found = density_threshold(similarities, self.config.density, len(self.kept))
        self.threshold.lerp_(found.to(self.threshold.dtype), THRESHOLD_MOMENTUM)
