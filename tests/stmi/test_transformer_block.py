import torch
from torch.nn import functional

from stmi.transformer_block import QuickGELU, quick_gelu_linear
from tests.tolerances import EXACT_FLOAT64


def test_activation_and_projection_that_keep_less_equal_the_plain_ones():
    torch.manual_seed(0)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 6), (4, 6), (4,))
    ]
    plain = functional.linear(QuickGELU()(inputs[0]), *inputs[1:])
    assert torch.allclose(quick_gelu_linear(*inputs), plain, atol=EXACT_FLOAT64)
    assert torch.autograd.gradcheck(quick_gelu_linear, inputs)
