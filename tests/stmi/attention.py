"""What the tests of both forms of modulated attention share: inputs, the equation, what is kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from stmi.feature_modulation import modulate


def attention_inputs(heads_of_strength: int = 1) -> list[Tensor]:
    torch.manual_seed(0)
    projected = torch.randn(3, 7, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    alpha, beta = (
        torch.rand(heads_of_strength, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    return [projected, torch.rand(3, 7) < 0.5, alpha, beta, 0.5]


def of_equation_8(projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float) -> Tensor:
    query, key, value = projected.permute(2, 0, 3, 1, 4)
    logits = modulate(scale * query @ key.mT, foreground, alpha, beta)
    return (logits.softmax(dim=-1) @ value).transpose(1, 2)


def in_float64_and_bfloat16(attend: Callable[..., Tensor]) -> list[list[Tensor]]:
    """Value and gradients of equation 8 in float64, and of a form of attention in bfloat16."""
    generator = torch.Generator().manual_seed(2)
    exact = torch.randn(3, 65, 3, 2, 16, generator=generator, dtype=torch.float64)
    foreground = torch.rand(3, 65, generator=generator) < 0.5
    weights = torch.randn(3, 65, 2, 16, generator=generator, dtype=torch.float64)
    results = []
    for form, dtype, of_strength in (
        (of_equation_8, torch.float64, torch.float64),
        (attend, torch.bfloat16, torch.float32),
    ):
        inputs = [exact.to(dtype), *(torch.full((1, 1, 1), 0.1, dtype=of_strength) for _ in range(2))]
        projected, alpha, beta = (x.requires_grad_() for x in inputs)
        mixed = form(projected, foreground, alpha, beta, 0.25)
        gradients = torch.autograd.grad(mixed, (projected, alpha, beta), weights.to(dtype))
        results.append([mixed.detach(), *gradients])
    return results


def bytes_kept(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    kept = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        forward()
    return sum(kept.values())


def bytes_of_one_attention(inputs: list[Tensor]) -> tuple[int, int]:
    """Bytes of one attention and of what it is made of, without and with its rows and what is small."""
    projected, foreground, *strength, _ = inputs
    batch, tokens, _, heads, _ = projected.shape
    needed = batch * heads * tokens**2 * projected.element_size() + projected.nbytes
    rows = 4 * batch * heads * tokens * 8
    return needed, needed + rows + foreground.nbytes + sum(x.nbytes for x in strength)
