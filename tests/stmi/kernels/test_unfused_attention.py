import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stmi.kernels.forms import attention
from stmi.kernels.unfused_attention import unfused_attention
from tests.tolerances import ROUNDING_FLOAT32


def heads(*tokens: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, count, 4, generator=random) for count in tokens]


@pytest.mark.parametrize("attend", [attention, unfused_attention])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trains", [True, False])
def test_value_and_gradients_equal_the_softmax_of_products(attend, dtype, trains):
    exact = [x.to(dtype).float().requires_grad_(trains) for x in heads(2, 5, 5)]
    query, key, value = exact
    expected = (query @ key.mT / 2).softmax(dim=-1) @ value
    inputs = [x.detach().to(dtype).requires_grad_(trains) for x in exact]
    output = attend(*inputs)
    assert output.dtype == dtype
    tolerance = ROUNDING_FLOAT32 if dtype == torch.float32 else 0.02
    assert torch.allclose(output.float(), expected, atol=tolerance)
    if trains:
        expected.square().sum().backward()
        output.square().sum().backward()
        for own, other in zip(inputs, exact, strict=True):
            assert torch.allclose(own.grad.float(), other.grad, atol=3 * tolerance)


def test_training_in_bfloat16_on_a_cpu_avoids_the_fused_kernel():
    inputs = [x.bfloat16().requires_grad_() for x in heads(2, 5, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        assert "ScaledDotProduct" not in type(attention(*inputs).grad_fn).__name__
        fused = functional.scaled_dot_product_attention(*inputs)
    assert "ScaledDotProduct" in type(fused.grad_fn).__name__
