import pytest
import torch
from torch.nn import functional

from stmi.config import LossConfig
from stmi.training import losses
from tests.stmi import golden
from tests.tolerances import GOLDEN_GRADIENT, GOLDEN_VALUE


def test_triplet_equals_the_released_loss_and_its_gradient():
    arrays = golden.load("losses")
    features = arrays["features"].clone().requires_grad_()
    loss = losses.batch_hard_triplet(features, arrays["labels"])
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["triplet"]), abs=GOLDEN_VALUE)
    assert torch.allclose(features.grad, arrays["grad_features"], atol=GOLDEN_GRADIENT)


def test_cross_entropy_equals_the_released_smoothing():
    arrays = golden.load("losses")
    config = LossConfig(label_smoothing=float(arrays["epsilon"]))
    parts = losses.objective(config, {"G": arrays["features"][: len(arrays["logits"])]},
                             {"G": arrays["logits"]}, arrays["logit_labels"])  # fmt: skip
    assert float(parts["identity/G"]) == pytest.approx(float(arrays["label_smooth_ce"]), abs=GOLDEN_VALUE)


def test_mining_equals_a_naive_loop():
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5), torch.arange(12) % 4
    expected = []
    for a in range(12):
        distances = [float((features[a] - features[b]).norm()) for b in range(12)]
        positive = max(distances[b] for b in range(12) if labels[b] == labels[a])
        negative = min(distances[b] for b in range(12) if labels[b] != labels[a])
        expected.append(float(functional.softplus(torch.tensor(positive - negative))))
    loss = losses.batch_hard_triplet(features, labels)
    assert float(loss) == pytest.approx(sum(expected) / 12, abs=GOLDEN_VALUE)


def test_margin_of_the_triplet_loss_equals_the_formula():
    features = torch.tensor([[0.0], [1.0], [1.5], [4.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    # Farthest positive minus nearest negative: 1 - 1.5, 1 - 0.5, 2.5 - 0.5, 2.5 - 3.
    expected = (0 + 0.8 + 2.3 + 0) / 4
    assert float(losses.batch_hard_triplet(features, labels, margin=0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_gradients_of_the_objective_agree_with_finite_differences(margin):
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 1, 1])
    feature, logits = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    config = LossConfig(triplet_margin=margin)

    def total(feature, logits):
        return losses.objective(config, {"G": feature}, {"G": logits}, labels)["total"]

    assert torch.autograd.gradcheck(total, (feature, logits))


def test_total_is_the_weighted_sum_of_the_parts_over_all_features():
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 1, 1])
    features = {name: torch.randn(4, 3) for name in "UGT"}
    logits = {name: torch.randn(4, 2) for name in "UGT"}
    config = LossConfig(identity_weight=0.25, triplet_weight=2.0)
    parts = losses.objective(config, features, logits, labels)
    expected = sum(0.25 * parts[f"identity/{name}"] + 2 * parts[f"triplet/{name}"] for name in "UGT")
    assert torch.allclose(parts["total"], expected)
