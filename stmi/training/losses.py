"""The objective: a cross-entropy and a triplet loss on each of G, U and T.

L_g(F) = w_id * CE_smoothed(F) + w_tri * Triplet(F)
L = L_g(G) + L_g(U) + L_g(T)
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stmi.config import LossConfig


def pairwise_distances(features: Tensor) -> Tensor:
    """Euclidean distances between all rows of `(batch, width)`: `(batch, batch)`."""
    squared = features.square().sum(dim=1)
    squares = squared[:, None] + squared[None, :] - 2 * features @ features.T
    # Rounding can make a square negative, and the root has no gradient at zero.
    return squares.clamp(min=1e-12).sqrt()


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Triplet loss with batch-hard mining (Hermans et al. 2017), on features that are not normalised.

    With d = d(anchor, farthest positive) - d(anchor, nearest negative), it is the mean over anchors of

        log(1 + exp(d))         soft margin
        max(0, d + margin)      with a margin

    Args:
        features: `(batch, width)`.
        labels: `(batch,)`; the loss is finite only if there are at least two different labels.
        margin: None for the soft margin.
    """
    distances = pairwise_distances(features)
    same = labels[:, None] == labels[None, :]
    farthest_positive = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    nearest_negative = distances.masked_fill(same, torch.inf).amin(dim=1)
    difference = farthest_positive - nearest_negative
    return (
        functional.softplus(difference) if margin is None else functional.relu(difference + margin)
    ).mean()


def objective(
    config: LossConfig, features: dict[str, Tensor], logits: dict[str, Tensor], labels: Tensor
) -> dict[str, Tensor]:
    """The loss of each feature and their sum: equations 19-20.

    Args:
        config: Weights and label smoothing.
        features: `(batch, width)` by feature name; at least the names in `logits`.
        logits: `(batch, identities)` by feature name.
        labels: `(batch,)`, int64.

    Returns:
        Scalars: `total`, and the unweighted parts `identity/NAME` and `triplet/NAME`.
    """
    parts: dict[str, Tensor] = {}
    total = torch.zeros((), device=labels.device)
    for name, scores in logits.items():
        identity = functional.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
        triplet = batch_hard_triplet(features[name], labels, config.triplet_margin)
        parts[f"identity/{name}"], parts[f"triplet/{name}"] = identity, triplet
        total = total + config.identity_weight * identity + config.triplet_weight * triplet
    return {"total": total, **parts}


def losses_without_gradient(
    config: LossConfig, features: Sequence[str], *, trains_text: bool
) -> tuple[str, ...]:
    """The parts of `objective` that train nothing.

    They have no weight, or are triplet losses of T from a frozen text tower: T depends on no weight. The
    cross-entropy of such a T trains the classifier of T, and nothing that retrieval uses.

    Args:
        config: Weights.
        features: Names of the features that have losses.
        trains_text: Whether the text tower is trained.
    """
    unweighted = [
        f"{kind}/{name}"
        for kind, weight in (("identity", config.identity_weight), ("triplet", config.triplet_weight))
        for name in features
        if not weight
    ]
    frozen = ["triplet/T"] if "T" in features and not trains_text else []
    return tuple(dict.fromkeys([*unweighted, *frozen]))
