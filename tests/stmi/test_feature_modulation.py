import pytest
import torch
from torch import Tensor

from stmi import feature_modulation
from stmi.config import SfmConfig
from stmi.feature_modulation import ModulatedAttention, ModulationStrength
from stmi.kernels import modulated_attention
from stmi.kernels.quick_gelu import QuickGELU
from stmi.transformer_block import TransformerBlock
from tests.stmi import golden
from tests.stmi.attention import (
    attention_inputs,
    bytes_kept,
    bytes_of_one_attention,
    in_float64_and_bfloat16,
    of_equation_8,
)
from tests.stmi.gradients import gradients_agree
from tests.tolerances import EXACT_FLOAT64, GOLDEN_GRADIENT, GOLDEN_VALUE


def released_block(arrays: dict[str, Tensor]) -> TransformerBlock:
    block = TransformerBlock(width=32, heads=4, mlp_width=128, activation=QuickGELU())
    block.load_state_dict(golden.weights(arrays))
    return block


def test_block_without_mask_equals_the_released_block():
    arrays = golden.load("plain_block")
    y = released_block(arrays)(arrays["x"].transpose(0, 1))
    assert torch.allclose(y.transpose(0, 1), arrays["y"], atol=GOLDEN_VALUE)


def test_modulated_block_equals_the_released_block_in_value_and_gradient():
    arrays = golden.load("sfm_block")
    block = released_block(arrays)
    x = arrays["x"].transpose(0, 1).clone().requires_grad_()
    alpha = arrays["w.adapter_alpha"].clone().requires_grad_()
    beta = arrays["w.adapter_beta"].clone().requires_grad_()
    patches = arrays["mask"].flatten(1) > 0
    foreground = torch.cat([torch.ones(len(patches), 1, dtype=torch.bool), patches], dim=1)
    y = block(x, foreground, (alpha, beta))
    (y * arrays["grad_y"].transpose(0, 1)).sum().backward()
    assert torch.allclose(y.transpose(0, 1), arrays["y"], atol=GOLDEN_VALUE)
    assert torch.allclose(x.grad.transpose(0, 1), arrays["grad_x"], atol=GOLDEN_GRADIENT)
    assert torch.allclose(alpha.grad, arrays["grad_alpha"], atol=GOLDEN_GRADIENT)
    assert torch.allclose(beta.grad, arrays["grad_beta"], atol=GOLDEN_GRADIENT)
    assert torch.allclose(block.attn.in_proj_weight.grad, arrays["grad_in_proj"], atol=GOLDEN_GRADIENT)


def test_modulation_equals_equations_4_to_7_written_as_loops():
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    foreground = torch.tensor([[True, True, False, True], [True, False, False, True]])
    alpha, beta = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    result = feature_modulation.modulate(logits, foreground, alpha, beta)
    for b in range(2):
        for h in range(2):
            for i in range(4):
                row = logits[b, h, i]
                for j in range(4):
                    inside = float(foreground[b, i] and foreground[b, j])
                    s = 0.3 * inside * (row.max() - row[j]) - 0.2 * (1 - inside) * (row[j] - row.min())
                    assert result[b, h, i, j] == pytest.approx(float(row[j] + s), abs=EXACT_FLOAT64)


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
    assert [layer for layer in range(6) if strength.of_layer(layer) is not None] == modulated
    assert strength.alpha.numel() == strength.beta.numel() == values


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("most", [2**20, 120, 50], ids=["all at once", "by images", "by heads"])
def test_own_backward_pass_equals_that_of_the_equation_in_any_parts(monkeypatch, heads, most):
    monkeypatch.setattr(modulated_attention, "PART_ELEMENTS", most)
    inputs = attention_inputs(heads)
    expected = of_equation_8(*inputs)
    mixed = modulated_attention.modulated_attention(*inputs)
    assert torch.allclose(mixed, expected, atol=EXACT_FLOAT64)
    weights, trained = torch.randn_like(mixed), [inputs[i] for i in (0, 2, 3)]
    of_equation = torch.autograd.grad((expected * weights).sum(), trained)
    for own, other in zip(torch.autograd.grad((mixed * weights).sum(), trained), of_equation, strict=True):
        assert torch.allclose(own, other, atol=EXACT_FLOAT64)


def test_nothing_is_kept_where_no_gradient_is_asked_for(monkeypatch):
    monkeypatch.setattr(modulated_attention, "PART_ELEMENTS", 120)
    inputs, kept = attention_inputs(), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        trained = modulated_attention.modulated_attention(*inputs)
        of_training = len(kept)
        with torch.no_grad():
            evaluated = modulated_attention.modulated_attention(*inputs)
    assert of_training == len(kept) > 0
    assert torch.equal(trained, evaluated)


def test_attention_in_bfloat16_is_near_that_of_float64_in_value_and_gradient():
    true, near = in_float64_and_bfloat16(modulated_attention.modulated_attention)
    for exact, rounded in zip(true, near, strict=True):
        assert (rounded.double() - exact).norm() < 0.02 * exact.norm()


def test_strength_in_bfloat16_is_as_fine_as_any_weight():
    projected, foreground, alpha, _, scale = attention_inputs()
    inputs = projected.detach().bfloat16(), torch.zeros_like(foreground), alpha
    given, found = set(), set()
    for step in range(40):
        beta = torch.full_like(alpha, 0.1 + 1e-4 * step)
        given.add(beta.bfloat16().item())
        mixed = modulated_attention.modulated_attention(*inputs, beta, scale)
        found.add(tuple(mixed.flatten().tolist()))
    assert len(found) == len(given) > 5


@pytest.mark.parametrize("keeps", [True, False])
def test_the_compiler_is_told_rightly_what_the_operator_gives(keeps):
    inputs = attention_inputs(2)
    if not keeps:
        inputs = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
    torch.library.opcheck(torch.ops.stmi.modulated_attention.default, (*inputs, keeps))


def test_own_backward_pass_has_the_right_gradients():
    assert torch.autograd.gradcheck(modulated_attention.modulated_attention, attention_inputs(2))


@pytest.mark.parametrize("tokens", [300, 2**15 + 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_row_extremes_are_those_of_max_and_min_and_their_places(dtype, tokens):
    logits = torch.randn(2, 3, 5, tokens, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0, 0, 0] = -logits[0, 0, 0].abs()
    highest, at_highest, lowest, at_lowest = modulated_attention._row_extremes(
        logits, modulated_attention._Scratch(logits)
    )
    assert torch.equal(highest, logits.amax(dim=-1, keepdim=True))
    assert torch.equal(lowest, logits.amin(dim=-1, keepdim=True))
    assert torch.equal(logits.gather(-1, at_highest.long()), highest)
    assert torch.equal(logits.gather(-1, at_lowest.long()), lowest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_that_are_not_numbers_give_gradients_that_are_not(dtype):
    projected, foreground, *strength, scale = attention_inputs()
    projected = projected.detach().to(dtype).fill_(torch.nan).requires_grad_()
    modulated_attention.modulated_attention(projected, foreground, *strength, scale).sum().backward()
    assert projected.grad.isnan().any()


def test_one_attention_and_what_it_is_made_of_is_all_that_is_kept():
    inputs = attention_inputs()
    kept = bytes_kept(lambda: modulated_attention.modulated_attention(*inputs))
    needed, most = bytes_of_one_attention(inputs)
    assert needed <= kept <= most


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
