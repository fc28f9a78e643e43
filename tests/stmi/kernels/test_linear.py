import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stmi.kernels.forms import linear
from stmi.kernels.linear import transposing_linear

WIDTHS = [(6, 3), (3, 6), (4, 4)]
ROWS = 1500
"""More rows than are transposed at a time."""


def layer(given: int, out: int, rows: int = 5) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = (2, rows, given), (out, given), (out,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("given", "out"), WIDTHS)
def test_whole_numbers_in_bfloat16_equal_pytorchs_layer_exactly(given, out, compiled):
    # Few of the rows are not zero: every sum is a whole number that bfloat16 can hold.
    exact = [x.detach().sign() for x in layer(given, out, ROWS)]
    keep = torch.arange(ROWS)[:, None] % 50 == 0
    exact[0] *= keep
    grad_output = torch.randn(2, ROWS, out, dtype=torch.float64).sign() * keep
    inputs = [x.bfloat16().requires_grad_() for x in exact]
    exact = [x.requires_grad_() for x in exact]
    run = torch.compile(transposing_linear, fullgraph=True, backend="aot_eager") if compiled else linear
    own, plain = run(*inputs), functional.linear(*exact)
    assert torch.equal(own.double(), plain)
    expected = torch.autograd.grad(plain, exact, grad_output)
    for gradient, other in zip(
        torch.autograd.grad(own, inputs, grad_output.bfloat16()), expected, strict=True
    ):
        assert torch.equal(gradient.double(), other)
        assert gradient.is_contiguous()


@pytest.mark.parametrize(("given", "out"), WIDTHS)
def test_gradients_agree_with_finite_differences(given, out):
    assert torch.autograd.gradcheck(transposing_linear, layer(given, out))


@pytest.mark.parametrize(("given", "out"), WIDTHS)
def test_autocast_layer_is_near_float64_and_trains_float32_weights(given, out):
    exact = layer(given, out)
    rounded = [x.detach().float().requires_grad_() for x in exact]
    with torch.autocast("cpu", torch.bfloat16):
        own = linear(*rounded)
    plain = functional.linear(*exact)
    assert own.dtype == torch.bfloat16
    grad_output = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, exact, grad_output)
    gradients = torch.autograd.grad(own, rounded, grad_output.bfloat16())
    for gradient, other in zip((own, *gradients), (plain, *expected), strict=True):
        assert (gradient.double() - other).norm() < 0.02 * other.norm()
    assert {x.dtype for x in gradients} == {torch.float32}


def test_float32_layer_is_pytorchs_own_bit_for_bit():
    inputs = [x.detach().float() for x in layer(6, 3)]
    assert torch.equal(linear(*inputs), functional.linear(*inputs))


def test_weight_of_another_type_is_refused_without_autocast():
    x, weight, bias = (x.detach() for x in layer(6, 3))
    with pytest.raises(RuntimeError, match="same dtype"):
        linear(x.bfloat16(), weight.float(), bias.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("given", "out"), WIDTHS)
def test_compiler_knows_the_true_shapes_of_the_operator(given, out, dtype):
    x, weight, _ = (x.detach().to(dtype) for x in layer(given, out))
    rows = torch.randn(10, out).to(dtype)
    operator = torch.ops.stmi.products_of_linear_gradients.default
    torch.library.opcheck(operator, (rows, x.flatten(0, 1), weight))
