import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stmi.kernels import linear
from tests.tolerances import EXACT_FLOAT64

WIDTHS = [(6, 3), (3, 6), (4, 4)]


def layer(given: int, out: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = (2, 5, given), (out, given), (out,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.fixture
def transposes(monkeypatch):
    """In any type what is else done in bfloat16 alone, in parts of three rows."""
    monkeypatch.setattr(linear, "_is_slow", lambda x: True)
    monkeypatch.setattr(linear, "ROWS_AT_ONCE", 3)


@pytest.mark.parametrize(("given", "out"), WIDTHS)
def test_layer_equals_pytorchs_in_value_and_gradient(transposes, given, out):
    inputs = layer(given, out)
    own, plain = linear.linear(*inputs), functional.linear(*inputs)
    assert torch.allclose(own, plain, atol=EXACT_FLOAT64)
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), inputs)
    for gradient, other in zip(torch.autograd.grad((own * weights).sum(), inputs), expected, strict=True):
        assert torch.allclose(gradient, other, atol=EXACT_FLOAT64)
        assert gradient.is_contiguous()


@pytest.mark.parametrize(("given", "out"), WIDTHS)
def test_layer_has_the_right_gradients(transposes, given, out):
    assert torch.autograd.gradcheck(linear.linear, layer(given, out))


@pytest.mark.parametrize(("given", "out"), WIDTHS)
def test_layer_in_bfloat16_is_near_that_of_float64_and_trains_float32_weights(given, out):
    exact = layer(given, out)
    rounded = [x.detach().float().requires_grad_() for x in exact]
    with torch.autocast("cpu", torch.bfloat16):
        own = linear.linear(*rounded)
    plain = functional.linear(*exact)
    assert own.dtype == torch.bfloat16
    weights = torch.randn_like(plain)
    true = torch.autograd.grad(plain, exact, weights)
    near = torch.autograd.grad(own, rounded, weights.bfloat16())
    for gradient, other in zip((own, *near), (plain, *true), strict=True):
        assert (gradient.double() - other).norm() < 0.02 * other.norm()
    assert {x.dtype for x in near} == {torch.float32}


def test_float32_layer_is_pytorchs_own_bit_for_bit():
    inputs = [x.detach().float() for x in layer(6, 3)]
    assert torch.equal(linear.linear(*inputs), functional.linear(*inputs))


@pytest.mark.parametrize(("given", "out"), WIDTHS)
def test_the_compiler_is_told_rightly_what_the_operator_gives(transposes, given, out):
    x, weight, _ = layer(given, out)
    rows = torch.randn(10, out, dtype=torch.float64)
    operator = torch.ops.stmi.products_of_linear_gradients.default
    torch.library.opcheck(operator, (rows, x.detach().flatten(0, 1), weight.detach()))
