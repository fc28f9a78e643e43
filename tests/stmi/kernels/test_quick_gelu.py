import pytest
import torch
from torch import nn

from stmi.kernels.quick_gelu import QuickGELU, quick_gelu_mlp
from tests.tolerances import EXACT_FLOAT64


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Linear(4, 6).double(), nn.Linear(6, 4).double()


def test_mlp_equals_the_plain_one_in_value_and_gradient(layers):
    hidden, out = layers
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    trained = (x, *hidden.parameters(), *out.parameters())
    plain, own = out(QuickGELU()(hidden(x))), quick_gelu_mlp(x, hidden, out)
    assert torch.allclose(own, plain, atol=EXACT_FLOAT64)
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), trained)
    for gradient, other in zip(torch.autograd.grad((own * weights).sum(), trained), expected, strict=True):
        assert torch.allclose(gradient, other, atol=EXACT_FLOAT64)


def test_mlp_gradients_agree_with_finite_differences(layers):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: quick_gelu_mlp(x, *layers), x)


def test_compiler_knows_the_true_shapes_of_the_operator(layers):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    hidden, out = layers
    inputs = (x, hidden.weight, hidden.bias, out.weight, out.bias)
    torch.library.opcheck(torch.ops.stmi.quick_gelu_mlp.default, inputs)


def test_mlp_under_autocast_is_near_the_plain_one_and_trains_float32_weights():
    torch.manual_seed(0)
    hidden, out, x = nn.Linear(4, 6), nn.Linear(6, 4), torch.randn(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        own = quick_gelu_mlp(x, hidden, out)
    assert own.dtype == torch.bfloat16
    assert torch.allclose(own.float(), out(QuickGELU()(hidden(x))), atol=0.02)
    own.sum().backward()
    assert hidden.weight.grad.dtype == out.bias.grad.dtype == torch.float32
