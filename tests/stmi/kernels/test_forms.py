import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stmi.feature_modulation import modulated_attention
from stmi.kernels import forms
from stmi.kernels.compiled_attention import compiled_attention
from stmi.kernels.partwise_attention import partwise_attention
from stmi.kernels.quick_gelu import QuickGELU, quick_gelu_mlp
from stmi.kernels.unfused_attention import unfused_attention
from stmi.transformer_block import TransformerBlock
from tests.stmi.attention import attention_inputs


def plain(*_: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError


def chosen(table, device="cpu", dtype=torch.float32, tokens=129, needs_gradient=True, compiling=False):
    """The form that is chosen for an input on a device; this machine need not have the device."""
    with FakeTensorMode():
        x = torch.empty(2, tokens, 8, dtype=dtype, device=device, requires_grad=needs_gradient)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: compiling)
            return forms.choose(table, plain, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ({"tokens": 129}, partwise_attention),
        ({"tokens": 1025, "compiling": True}, partwise_attention),
        ({"tokens": 129, "compiling": True}, compiled_attention),
        ({"device": "cuda"}, partwise_attention),
        ({"device": "cuda", "tokens": 1025, "compiling": True}, compiled_attention),
        ({"device": "xpu"}, plain),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_modulated_attention_has_a_form_for_each_situation(dtype, situation, expected):
    assert chosen(forms.MODULATED_ATTENTION, dtype=dtype, **situation) is expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("compiling", [True, False])
@pytest.mark.parametrize("table", [forms.MODULATED_ATTENTION, forms.QUICK_GELU_MLP, forms.ATTENTION])
def test_equations_as_written_run_in_unusual_types(table, compiling, device, dtype):
    assert chosen(table, device, dtype, compiling=compiling) is plain


def test_unfused_attention_runs_in_bfloat16_training_on_a_cpu_only():
    assert chosen(forms.ATTENTION, dtype=torch.bfloat16) is unfused_attention
    assert chosen(forms.ATTENTION, dtype=torch.bfloat16, needs_gradient=False) is plain
    assert chosen(forms.ATTENTION, dtype=torch.float32) is plain
    assert chosen(forms.ATTENTION, device="cuda", dtype=torch.bfloat16) is plain


def test_mlp_is_left_to_the_compiler_on_cuda_only():
    assert chosen(forms.QUICK_GELU_MLP, device="cuda", compiling=True) is plain
    assert chosen(forms.QUICK_GELU_MLP, device="cuda") is quick_gelu_mlp
    assert chosen(forms.QUICK_GELU_MLP, compiling=True) is quick_gelu_mlp


def test_autocast_decides_the_type_of_the_products():
    x = torch.randn(2, 3, 4, requires_grad=True)
    assert forms.choose(forms.ATTENTION, plain, x) is plain
    with torch.autocast("cpu", torch.bfloat16):
        assert forms.choose(forms.ATTENTION, plain, x) is unfused_attention
        assert forms.choose(forms.ATTENTION, plain, x.double()) is plain


@pytest.mark.parametrize(("tokens", "is_operator"), [(256, False), (257, True)])
def test_compiler_sees_expressions_up_to_256_tokens_and_an_operator_beyond(tokens, is_operator):
    graphs = []

    def record(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    def attend(projected, *others):
        form = forms.choose(forms.MODULATED_ATTENTION, modulated_attention, projected)
        return form(projected, *others)

    projected, foreground, alpha, beta, scale = attention_inputs(images=1, tokens=tokens)
    inputs = [x.detach().float().requires_grad_() for x in (projected, alpha, beta)]
    torch.compile(attend, fullgraph=True, dynamic=False, backend=record)(
        inputs[0], foreground, *inputs[1:], scale
    )
    assert ("stmi.modulated_attention" in graphs[0]) is is_operator


@pytest.mark.parametrize("activation", [QuickGELU(), nn.GELU()])
def test_float32_block_is_near_the_block_as_written_in_float64(activation):
    torch.manual_seed(0)
    block = TransformerBlock(width=8, heads=2, mlp_width=12, activation=activation)
    tokens, foreground = torch.randn(2, 5, 8), torch.rand(2, 5) < 0.5
    strength = (torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.2))
    fast = block(tokens, foreground, strength)
    written = block.double()(tokens.double(), foreground, tuple(x.double() for x in strength))
    assert torch.allclose(fast.double(), written, atol=1e-5)
