"""Inputs and checks that the tests of both fast forms of modulated attention share."""

from collections.abc import Callable

import torch
from torch import Tensor

from stmi.feature_modulation import modulated_attention
from tests.tolerances import EXACT_FLOAT64

Attention = Callable[..., Tensor]


def attention_inputs(
    strength_heads: int = 1, images: int = 3, tokens: int = 7, heads: int = 2, width: int = 4
) -> list[Tensor]:
    torch.manual_seed(0)
    projected = torch.randn(images, tokens, 3, heads, width, dtype=torch.float64, requires_grad=True)
    alpha, beta = (
        torch.rand(strength_heads, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    return [projected, torch.rand(images, tokens) < 0.5, alpha, beta, 0.5]


def assert_equals_equation(attend: Attention, inputs: list[Tensor]) -> None:
    """Output and gradients in float64 are those of the equations as written."""
    trained = [inputs[i] for i in (0, 2, 3)]
    output, expected = attend(*inputs), modulated_attention(*inputs)
    assert torch.allclose(output, expected, atol=EXACT_FLOAT64)
    grad_output = torch.randn_like(output)
    gradients = torch.autograd.grad(output, trained, grad_output)
    for own, other in zip(gradients, torch.autograd.grad(expected, trained, grad_output), strict=True):
        assert own.shape == other.shape
        assert torch.allclose(own, other, atol=EXACT_FLOAT64)


def assert_bfloat16_is_near(attend: Attention) -> None:
    """Output and gradients in bfloat16 are near those of the equations in float64."""
    generator = torch.Generator().manual_seed(2)
    exact = torch.randn(3, 65, 3, 2, 16, generator=generator, dtype=torch.float64)
    foreground = torch.rand(3, 65, generator=generator) < 0.5
    grad_output = torch.randn(3, 65, 2, 16, generator=generator, dtype=torch.float64)
    results = []
    for form, dtype, strength_dtype in (
        (modulated_attention, torch.float64, torch.float64),
        (attend, torch.bfloat16, torch.float32),
    ):
        inputs = [exact.to(dtype), *(torch.full((1, 1, 1), 0.1, dtype=strength_dtype) for _ in range(2))]
        projected, alpha, beta = (x.requires_grad_() for x in inputs)
        output = form(projected, foreground, alpha, beta, 0.25)
        gradients = torch.autograd.grad(output, (projected, alpha, beta), grad_output.to(dtype))
        results.append([output.detach(), *gradients])
    for expected, rounded in zip(*results, strict=True):
        assert (rounded.double() - expected).norm() < 0.02 * expected.norm()


def assert_keeps_one_attention(attend: Attention) -> None:
    """The forward pass keeps one attention, queries, keys and values, and nothing else of their size."""
    inputs = attention_inputs()
    projected, foreground, *strength, _ = inputs
    batch, tokens, _, heads, _ = projected.shape
    needed = batch * heads * tokens**2 * projected.element_size() + projected.nbytes
    rows = 4 * batch * heads * tokens * 8
    small = rows + foreground.nbytes + sum(x.nbytes for x in strength)
    assert needed <= kept_bytes(lambda: attend(*inputs)) <= needed + small


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        forward()
    return sum(kept.values())
