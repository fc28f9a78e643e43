import pytest
import torch

from stmi.kernels.partwise_attention import partwise_attention, row_extremes
from tests.stmi.attention import (
    assert_bfloat16_is_near,
    assert_equals_equation,
    assert_keeps_one_attention,
    attention_inputs,
)

# More logits than a part holds: parts of whole images, and of some heads of one image.
SIZES = {
    "one part": {},
    "parts of images": {"images": 5, "tokens": 600, "width": 2},
    "parts of heads": {"images": 2, "tokens": 1100, "width": 2},
}


@pytest.mark.parametrize("strength_heads", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradients_equal_the_equations_in_any_parts(size, strength_heads):
    assert_equals_equation(partwise_attention, attention_inputs(strength_heads, **SIZES[size]))


@pytest.mark.parametrize("size", ["one part", "parts of heads"])
def test_compiled_operator_equals_the_equations(size):
    compiled = torch.compile(partwise_attention, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_equals_equation(compiled, attention_inputs(2, **SIZES[size]))


def test_gradients_agree_with_finite_differences():
    assert torch.autograd.gradcheck(partwise_attention, attention_inputs(2, images=2, tokens=4, width=2))


def test_bfloat16_is_near_float64():
    assert_bfloat16_is_near(partwise_attention)


def test_one_attention_is_kept():
    assert_keeps_one_attention(partwise_attention)


@pytest.mark.parametrize("size", ["one part", "parts of images"])
def test_nothing_is_kept_where_no_gradient_is_needed(size):
    inputs, kept = attention_inputs(**SIZES[size]), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        trained = partwise_attention(*inputs)
        in_training = len(kept)
        with torch.no_grad():
            evaluated = partwise_attention(*inputs)
    assert in_training == len(kept) > 0
    assert torch.equal(trained, evaluated)


def test_strength_is_as_fine_as_any_weight_in_bfloat16():
    projected, foreground, alpha, _, scale = attention_inputs()
    inputs = projected.detach().bfloat16(), torch.zeros_like(foreground), alpha
    given, found = set(), set()
    for step in range(40):
        beta = torch.full_like(alpha, 0.1 + 1e-4 * step)
        given.add(beta.bfloat16().item())
        found.add(tuple(partwise_attention(*inputs, beta, scale).flatten().tolist()))
    assert len(found) == len(given) > 5


@pytest.mark.parametrize("keeps", [True, False])
def test_compiler_knows_the_true_shapes_of_the_operator(keeps):
    inputs = attention_inputs(2)
    if not keeps:
        inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
    torch.library.opcheck(torch.ops.stmi.modulated_attention.default, (*inputs, keeps))


@pytest.mark.parametrize("tokens", [300, 2**15 + 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_row_extremes_are_those_of_max_and_min(dtype, tokens):
    logits = torch.randn(2, 3, 5, tokens, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0, 0, 0] = -logits[0, 0, 0].abs()
    highest, at_highest, lowest, at_lowest = row_extremes(logits)
    assert torch.equal(highest, logits.amax(dim=-1, keepdim=True))
    assert torch.equal(lowest, logits.amin(dim=-1, keepdim=True))
    assert torch.equal(logits.gather(-1, at_highest.long()), highest)
    assert torch.equal(logits.gather(-1, at_lowest.long()), lowest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nan_logits_give_nan_gradients(dtype):
    projected, foreground, *strength, scale = attention_inputs()
    projected = projected.detach().to(dtype).fill_(torch.nan).requires_grad_()
    partwise_attention(projected, foreground, *strength, scale).sum().backward()
    assert projected.grad.isnan().any()
