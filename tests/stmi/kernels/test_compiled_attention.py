import pytest
import torch

from stmi.kernels.compiled_attention import compiled_attention
from tests.stmi.attention import (
    assert_bfloat16_is_near,
    assert_equals_equation,
    assert_keeps_one_attention,
    attention_inputs,
)


@pytest.fixture
def compiled():
    return torch.compile(compiled_attention, fullgraph=True, dynamic=False)


@pytest.mark.parametrize("strength_heads", [1, 2])
def test_value_and_gradients_equal_the_equations(strength_heads):
    assert_equals_equation(compiled_attention, attention_inputs(strength_heads))


@pytest.mark.parametrize("strength_heads", [1, 2])
def test_gradients_agree_with_finite_differences(strength_heads):
    assert torch.autograd.gradcheck(
        compiled_attention, attention_inputs(strength_heads, images=2, tokens=4, width=2)
    )


@pytest.mark.slow
def test_compiled_machine_code_in_bfloat16_is_near_float64(compiled):
    assert_bfloat16_is_near(compiled)


def test_nan_in_one_image_gives_nan_gradients_there_and_nowhere_else():
    projected, *others = attention_inputs()
    with torch.no_grad():
        projected[1] = torch.nan
    compiled_attention(projected, *others).sum().backward()
    assert projected.grad[1].isnan().any()
    assert projected.grad[[0, 2]].isfinite().all()


def test_compiled_machine_code_keeps_one_attention(compiled):
    assert_keeps_one_attention(compiled)
