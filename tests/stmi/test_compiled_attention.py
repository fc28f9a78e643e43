import pytest
import torch
from torch import Tensor

from stmi.compiled_attention import compiled_attention
from stmi.feature_modulation import modulate
from tests.tolerances import EXACT_FLOAT64


def attention_inputs(heads_of_strength: int = 1) -> list[Tensor]:
    torch.manual_seed(0)
    projected = torch.randn(3, 7, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    strength = (torch.rand(heads_of_strength, 1, 1, dtype=torch.float64, requires_grad=True) for _ in "ab")
    return [projected, torch.rand(3, 7) < 0.5, *strength, 0.5]


def of_equation_8(projected: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float) -> Tensor:
    query, key, value = projected.permute(2, 0, 3, 1, 4)
    logits = modulate(scale * query @ key.mT, foreground, alpha, beta)
    return (logits.softmax(dim=-1) @ value).transpose(1, 2)


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
    generator = torch.Generator().manual_seed(2)
    exact = torch.randn(3, 65, 3, 2, 16, generator=generator, dtype=torch.float64)
    foreground = torch.rand(3, 65, generator=generator) < 0.5
    weights = torch.randn(3, 65, 2, 16, generator=generator, dtype=torch.float64)
    compiled = torch.compile(compiled_attention, fullgraph=True, dynamic=False)
    results = []
    for attend, dtype in ((of_equation_8, torch.float64), (compiled, torch.bfloat16)):
        of_strength = torch.float64 if dtype == torch.float64 else torch.float32
        inputs = [exact.to(dtype), *(torch.full((1, 1, 1), 0.1, dtype=of_strength) for _ in range(2))]
        projected, alpha, beta = (x.requires_grad_() for x in inputs)
        mixed = attend(projected, foreground, alpha, beta, 0.25)
        gradients = torch.autograd.grad(mixed, (projected, alpha, beta), weights.to(dtype))
        results.append([mixed.detach(), *gradients])
    for true, near in zip(*results, strict=True):
        assert (near.double() - true).norm() < 0.02 * true.norm()


def test_logits_that_are_not_numbers_give_gradients_that_are_not():
    projected, *others = attention_inputs()
    projected = projected.detach().fill_(torch.nan).requires_grad_()
    compiled_attention(projected, *others).sum().backward()
    assert projected.grad.isnan().any()


def test_one_attention_and_what_it_is_made_of_is_all_that_is_kept():
    projected, foreground, *strength, scale = attention_inputs()
    kept = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        compiled_attention(projected, foreground, *strength, scale)
    batch, tokens, _, heads, _ = projected.shape
    attention = batch * heads * tokens**2 * projected.element_size()
    rows = 4 * batch * heads * tokens * 8
    small = foreground.nbytes + sum(x.nbytes for x in strength)
    assert attention + projected.nbytes <= sum(kept.values()) <= attention + projected.nbytes + rows + small
