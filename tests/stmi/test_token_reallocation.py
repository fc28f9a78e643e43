import pytest
import torch

from stmi.config import StrConfig
from stmi.token_reallocation import ReallocationBlock, TokenReallocation
from tests.stmi import golden
from tests.stmi.gradients import gradients_agree
from tests.tolerances import GOLDEN_VALUE


def test_block_equals_the_released_block():
    arrays = golden.load("str_block")
    block = ReallocationBlock(width=32, heads=8)
    block.load_state_dict(golden.weights(arrays))
    assert torch.allclose(block(arrays["queries"], arrays["patches"]), arrays["y"], atol=GOLDEN_VALUE)


def test_queries_are_the_learnable_ones_and_the_text_last():
    torch.manual_seed(0)
    module = TokenReallocation(8, StrConfig(tokens=2, heads=2))
    patches, text = torch.randn(3, 5, 8), torch.randn(3, 8)
    for sample in range(3):
        queries = torch.stack([*module.queries, text[sample]])
        expected = module.block(queries[None], patches[sample : sample + 1])[0]
        assert torch.allclose(module(patches, text)[sample], expected, atol=GOLDEN_VALUE)
        alone = module.block(module.queries[None], patches[sample : sample + 1])[0]
        assert torch.allclose(module(patches, None)[sample], alone, atol=GOLDEN_VALUE)


def test_block_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    block = ReallocationBlock(width=4, heads=2)
    queries, patches = (torch.randn(1, n, 4, dtype=torch.float64, requires_grad=True) for n in (2, 3))
    assert gradients_agree(block, queries, patches)


def test_gradients_of_the_learnable_queries_agree_with_finite_differences():
    torch.manual_seed(0)
    module = TokenReallocation(4, StrConfig(tokens=2, heads=2, mlp_ratio=1))
    patches = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    text = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert gradients_agree(module, patches, text)


def test_semantic_tokens_do_not_depend_on_the_order_of_patches():
    torch.manual_seed(0)
    module = TokenReallocation(16, StrConfig(tokens=3, heads=4))
    patches, text = torch.randn(2, 7, 16), torch.randn(2, 16)
    shuffled = patches[:, torch.randperm(7)]
    assert module(patches, text).shape == (2, 4, 16)
    assert torch.allclose(module(patches, text), module(shuffled, text), atol=GOLDEN_VALUE)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"str\.heads=5 does not divide the token width 16"):
        TokenReallocation(16, StrConfig(heads=5))
