import pytest
import torch

from stmi.kernels.compiled_attention import compiled_attention
from tests.stmi.attention import (
    attention_inputs,
    bytes_kept,
    bytes_of_one_attention,
    in_float64_and_bfloat16,
    of_equation_8,
)
from tests.tolerances import EXACT_FLOAT64


@pytest.mark.parametrize("heads", [1, 2])
def test_own_backward_pass_equals_that_of_the_equation(heads):
    inputs = attention_inputs(heads)
    trained = [inputs[i] for i in (0, 2, 3)]
    mixed, expected = compiled_attention(*inputs), of_equation_8(*inputs)
    assert torch.allclose(mixed, expected, atol=EXACT_FLOAT64)
    weights = torch.randn_like(mixed)
    of_equation = torch.autograd.grad((expected * weights).sum(), trained)
    for own, other in zip(torch.autograd.grad((mixed * weights).sum(), trained), of_equation, strict=True):
        assert own.shape == other.shape
        assert torch.allclose(own, other, atol=EXACT_FLOAT64)


@pytest.mark.parametrize("heads", [1, 2])
def test_own_backward_pass_has_the_right_gradients(heads):
    assert torch.autograd.gradcheck(compiled_attention, attention_inputs(heads))


def test_machine_code_of_the_compiler_is_near_float64_in_value_and_gradient():
    compiled = torch.compile(compiled_attention, fullgraph=True, dynamic=False)
    true, near = in_float64_and_bfloat16(compiled)
    for exact, rounded in zip(true, near, strict=True):
        assert (rounded.double() - exact).norm() < 0.02 * exact.norm()


def test_an_image_that_is_not_numbers_has_gradients_that_are_not_and_leaves_the_others_alone():
    projected, *others = attention_inputs()
    with torch.no_grad():
        projected[1] = torch.nan
    compiled_attention(projected, *others).sum().backward()
    assert projected.grad[1].isnan().any()
    assert projected.grad[[0, 2]].isfinite().all()


def test_one_attention_and_what_it_is_made_of_is_all_that_is_kept():
    inputs = attention_inputs()
    compiled = torch.compile(compiled_attention, fullgraph=True, dynamic=False)
    kept = bytes_kept(lambda: compiled(*inputs))
    needed, most = bytes_of_one_attention(inputs)
    assert needed <= kept <= most
