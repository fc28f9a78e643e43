"""Which form of a computation runs when: a table for each computation, and one function that reads it.

The plain form of a computation is PyTorch's own function or, for SFM, the paper's equations in
`stmi.feature_modulation`. It runs wherever speed does not matter: in float64, as in gradient checks, and on
devices other than CPUs and CUDA, and in what is exported, which other programs compute. The forms in the
tables give the same values, faster or in less memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from stmi.kernels.compiled_attention import compiled_attention
from stmi.kernels.linear import product_dtype, transposing_linear
from stmi.kernels.partwise_attention import partwise_attention
from stmi.kernels.quick_gelu import quick_gelu_mlp
from stmi.kernels.unfused_attention import unfused_attention

CPU, CUDA, BOTH = ("cpu",), ("cuda",), ("cpu", "cuda")
BFLOAT16, TRAINED = (torch.bfloat16,), (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Form:
    """A row of a table: a form, why it is taken, and its conditions, all of which must hold.

    Attributes:
        run: The form; None for the plain one.
        why: The reason.
        devices: Device types.
        dtypes: Types in which the products are computed.
        compiling: Whether `torch.compile` traces the network; None for both.
        most_tokens: The longest sequence; None for any.
        needs_gradient: Whether an input requires a gradient; None for both.
    """

    run: Callable[..., Tensor] | None
    why: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    compiling: bool | None = None
    most_tokens: int | None = None
    needs_gradient: bool | None = None

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether the conditions hold; the first input is `(batch, tokens, ...)`."""
        first = inputs[0]
        return (
            first.device.type in self.devices
            and product_dtype(first) in self.dtypes
            and self.compiling in (None, torch.compiler.is_compiling())
            and (self.most_tokens is None or first.shape[1] <= self.most_tokens)
            and self.needs_gradient in (None, any(x.requires_grad for x in inputs))
        )


# Ratios were measured on two CPU cores with AMX, in bfloat16; unless a row says otherwise, they are similar
# without AMX.
# fmt: off
MODULATED_ATTENTION = (
    Form(compiled_attention, "The compiler fuses everything between two matrix products.",
         CUDA, TRAINED, compiling=True),
    Form(compiled_attention, "At 129 tokens, fused expressions take 0.6 times as long as the parts.",
         CPU, TRAINED, compiling=True, most_tokens=256),
    Form(partwise_attention, "Keeps one attention and no logits, and computes in parts that fit the CPU's "
         "cache. At 513 tokens, fused expressions take 1.4 times as long, at 1,025 tokens 1.6 times.",
         BOTH, TRAINED),
)
ATTENTION = (
    Form(unfused_attention, "The backward pass of PyTorch's fused kernel takes two to ten times as long.",
         CPU, BFLOAT16, needs_gradient=True),
)
LINEAR = (
    Form(transposing_linear, "PyTorch's product for the gradient of the weight takes up to twice as long "
         "on a CPU with AMX, and its sum for the gradient of the bias 8 times as long on any.",
         CPU, BFLOAT16),
)
QUICK_GELU_MLP = (
    Form(None, "The compiler fuses the activation with the products.", CUDA, TRAINED, compiling=True),
    Form(quick_gelu_mlp, "As fast, but keeps the hidden layer once instead of three times.", BOTH, TRAINED),
)
# fmt: on


def choose(table: Sequence[Form], plain: Callable[..., Tensor], *inputs: Tensor) -> Callable[..., Tensor]:
    """The form of the first row that fits the inputs; `plain` where no row does, and in an export."""
    if torch.compiler.is_exporting():
        return plain
    for form in table:
        if form.fits(inputs):
            return form.run or plain
    return plain


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute `torch.nn.functional.linear` in its fastest form."""
    return choose(LINEAR, functional.linear, x)(x, weight, bias)


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(Q K^T * scale) V, in the fastest form.

    Args:
        query: `(batch, heads, queries, head width)`.
        key: `(batch, heads, tokens, head width)`.
        value: `(batch, heads, tokens, head width)`.
        scale: Factor of the logits; None for 1 / sqrt(head width).

    Returns:
        `(batch, heads, queries, head width)`.
    """
    attend = choose(ATTENTION, functional.scaled_dot_product_attention, query, key)
    return attend(query, key, value, scale=scale)
