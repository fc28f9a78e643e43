import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stmi import feature_modulation
from stmi.config import SfmConfig
from stmi.feature_modulation import ModulatedAttention, ModulationStrength
from stmi.kernels.quick_gelu import QuickGELU
from stmi.transformer_block import TransformerBlock
from tests.stmi import golden
from tests.stmi.gradients import gradients_agree
from tests.tolerances import EXACT_FLOAT64, GOLDEN_GRADIENT, GOLDEN_VALUE


def released_block(arrays: dict[str, Tensor], dtype: torch.dtype) -> TransformerBlock:
    block = TransformerBlock(width=32, heads=4, mlp_width=128, activation=QuickGELU())
    block.load_state_dict(golden.weights(arrays))
    return block.to(dtype)


# The faster forms run in float32, the equations as written in float64.
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@DTYPES
def test_block_without_mask_equals_the_released_block(dtype):
    arrays = golden.load("plain_block")
    y = released_block(arrays, dtype)(arrays["x"].transpose(0, 1).to(dtype))
    assert torch.allclose(y.transpose(0, 1).float(), arrays["y"], atol=GOLDEN_VALUE)


@DTYPES
def test_modulated_block_equals_the_released_block_in_value_and_gradient(dtype):
    arrays = golden.load("sfm_block")
    block = released_block(arrays, dtype)
    x, alpha, beta = (arrays[name].to(dtype) for name in ("x", "w.adapter_alpha", "w.adapter_beta"))
    x = x.transpose(0, 1).clone()
    for trained in (x, alpha, beta):
        trained.requires_grad_()
    patches = arrays["mask"].flatten(1) > 0
    foreground = torch.cat([torch.ones(len(patches), 1, dtype=torch.bool), patches], dim=1)
    y = block(x, foreground, (alpha, beta))
    (y * arrays["grad_y"].transpose(0, 1)).sum().backward()
    assert torch.allclose(y.transpose(0, 1).float(), arrays["y"], atol=GOLDEN_VALUE)
    for gradient, name in (
        (x.grad.transpose(0, 1), "grad_x"),
        (alpha.grad, "grad_alpha"),
        (beta.grad, "grad_beta"),
        (block.attn.in_proj_weight.grad, "grad_in_proj"),
    ):
        assert torch.allclose(gradient.float(), arrays[name], atol=GOLDEN_GRADIENT), name


def test_attention_equals_equations_3_to_8_written_as_loops():
    torch.manual_seed(0)
    projected = torch.randn(2, 4, 3, 2, 5, dtype=torch.float64)
    foreground = torch.tensor([[True, True, False, True], [True, False, False, True]])
    alpha, beta = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    result = feature_modulation.modulated_attention(projected, foreground, alpha, beta, 5**-0.5)
    for b, h, i in np.ndindex(2, 2, 4):
        query, keys, values = projected[b, i, 0, h], projected[b, :, 1, h], projected[b, :, 2, h]
        row = [float(query @ key) for key in keys]
        weights = []
        for j in range(4):
            inside = float(foreground[b, i] and foreground[b, j])
            s = 0.3 * inside * (max(row) - row[j]) - 0.2 * (1 - inside) * (row[j] - min(row))
            weights.append(math.exp((row[j] + s) / math.sqrt(5)))
        expected = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        assert torch.allclose(result[b, i, h], expected, atol=EXACT_FLOAT64)


@pytest.mark.parametrize("is_modulated", [True, False])
@pytest.mark.parametrize("activation", [QuickGELU(), torch.nn.GELU()])
def test_block_gradients_agree_with_finite_differences(activation, is_modulated):
    torch.manual_seed(0)
    block = TransformerBlock(width=4, heads=2, mlp_width=6, activation=activation)
    tokens = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    foreground = torch.tensor([[True, False, True], [True, True, False]])
    strength = [torch.rand(2, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    class Modulated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, tokens: Tensor, *strength: Tensor) -> Tensor:
            return self.block(tokens, foreground, strength) if is_modulated else self.block(tokens)

    assert gradients_agree(Modulated(), tokens, *(strength if is_modulated else []))


@pytest.mark.parametrize("logit_scale", ["head_width", "model_width"])
def test_zero_strength_is_ordinary_attention(logit_scale):
    torch.manual_seed(0)
    attention = ModulatedAttention(16, 4, logit_scale).double()
    tokens = torch.randn(2, 5, 16, dtype=torch.float64)
    mask = torch.rand(2, 5) > 0.5
    zero = torch.zeros(1, dtype=torch.float64)
    plain = attention(tokens, None, None)
    assert torch.allclose(attention(tokens, mask, (zero, zero)), plain, atol=EXACT_FLOAT64)


def test_modulation_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    alpha = torch.rand(2, 1, 1, dtype=torch.float64, requires_grad=True)
    beta = torch.rand(2, 1, 1, dtype=torch.float64, requires_grad=True)
    foreground = torch.tensor([[True, False, True, True]])
    assert torch.autograd.gradcheck(
        lambda a, x, y: feature_modulation.modulate(a, foreground, x, y), (logits, alpha, beta)
    )


def test_certain_perturbation_makes_everything_foreground():
    mask = torch.tensor([[True, False, False]])
    uniforms = torch.tensor([[0.0, 0.5, 0.999]])
    assert feature_modulation.perturb(mask, 1.0, uniforms).all()


def test_perturbation_flips_background_only_and_at_its_rate():
    uniforms = torch.rand(200, 1000, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(1000).expand(200, -1) < 500
    perturbed = feature_modulation.perturb(mask, 0.1, uniforms)
    assert perturbed[:, :500].all()
    assert float(perturbed[:, 500:].float().mean()) == pytest.approx(0.1, abs=0.005)


def test_token_mask_takes_any_overlap_or_a_share():
    share = torch.tensor([[0.0, 0.01, 0.5, 1.0]])
    assert feature_modulation.token_mask(share, 0).tolist() == [[False, True, True, True]]
    assert feature_modulation.token_mask(share, 0.5).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("sharing", "modulated", "values"),
    [
        ("all_layers", [0, 1, 2, 3, 4, 5], 1),
        ("early_half", [0, 1, 2], 3),
        ("late_half", [3, 4, 5], 3),
        ("per_layer", [0, 1, 2, 3, 4, 5], 6),
        ("per_head", [0, 1, 2, 3, 4, 5], 12),
    ],
)
def test_sharing_modulates_the_layers_of_table_5(sharing, modulated, values):
    strength = ModulationStrength(SfmConfig(sharing=sharing), layers=6, heads=2)
    assert [layer for layer in range(6) if strength.for_layer(layer) is not None] == modulated
    assert strength.alpha.numel() == strength.beta.numel() == values


def test_logits_can_be_scaled_by_the_width_of_all_heads():
    torch.manual_seed(0)
    tokens, foreground = torch.randn(2, 5, 16, dtype=torch.float64), torch.rand(2, 5) < 0.5
    strength = (torch.tensor([[[0.1]]], dtype=torch.float64),) * 2
    usual, wide = ModulatedAttention(16, 4).double(), ModulatedAttention(16, 4, "model_width").double()
    wide.load_state_dict(usual.state_dict())
    with torch.no_grad():
        wide.in_proj_weight[:16] *= 2  # four heads: the root of 4 between the two scales
    assert torch.allclose(
        usual(tokens, foreground, strength), wide(tokens, foreground, strength), atol=EXACT_FLOAT64
    )
