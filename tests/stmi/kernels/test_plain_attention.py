import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stmi.kernels.plain_attention import attend
from tests.tolerances import ROUNDING_FLOAT32


def heads(*tokens: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, count, 4, generator=random) for count in tokens]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trains", [True, False])
def test_attention_equals_its_equation_in_value_and_gradient(dtype, trains):
    exact = [x.to(dtype).float().requires_grad_(trains) for x in heads(2, 5, 5)]
    query, key, value = exact
    expected = (query @ key.mT / 2).softmax(dim=-1) @ value
    inputs = [x.detach().to(dtype).requires_grad_(trains) for x in exact]
    mixed = attend(*inputs)
    assert mixed.dtype == dtype
    tolerance = ROUNDING_FLOAT32 if dtype == torch.float32 else 0.02
    assert torch.allclose(mixed.float(), expected, atol=tolerance)
    if trains:
        expected.square().sum().backward()
        mixed.square().sum().backward()
        for own, other in zip(inputs, exact, strict=True):
            assert torch.allclose(own.grad.float(), other.grad, atol=3 * tolerance)


def test_training_on_a_processor_in_bfloat16_avoids_the_slow_backward_pass_of_the_fused_kernel():
    inputs = [x.bfloat16().requires_grad_() for x in heads(2, 5, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        assert "ScaledDotProduct" not in type(attend(*inputs).grad_fn).__name__
        fused = functional.scaled_dot_product_attention(*inputs)
    assert "ScaledDotProduct" in type(fused.grad_fn).__name__
