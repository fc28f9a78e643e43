"""Functions with a backward pass of their own, for eager execution and for the compiler.

The compiler traces an `autograd.Function` and generates code of its own for it. It calls an operator as it
is. `with_own_gradient` makes both from one forward and one backward function.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_own_gradient(
    name: str,
    forward: Callable[..., list[Tensor]],
    backward: Callable[..., list[Tensor]],
    needed: tuple[int, ...],
    trained: tuple[int, ...],
) -> Callable[..., Tensor]:
    """A differentiable function of a forward and a backward pass.

    Args:
        name: Name of the operator, `torch.ops.stmi.NAME`; that of its backward pass is `NAME_backward`.
        forward: Returns the result, and after it the tensors that only the backward pass needs.
        backward: `backward(grad_output, kept, *inputs)`, with the tensors that `forward` returned after its
            result, and the needed inputs. Returns the gradients of the trained inputs.
        needed: Positions of the inputs that the backward pass needs.
        trained: Positions of the inputs that get a gradient.

    Returns:
        The result of `forward`, as a function of its inputs.
    """
    operator = torch.library.custom_op(f"stmi::{name}", forward, mutates_args=())
    backward_operator = torch.library.custom_op(f"stmi::{name}_backward", backward, mutates_args=())
    # The shapes for the compiler are those that the functions give for tensors without content.
    operator.register_fake(forward)
    backward_operator.register_fake(backward)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.input_count, ctx.kept_count = len(inputs), len(output) - 1
        ctx.numbers = {i: inputs[i] for i in needed if not isinstance(inputs[i], Tensor)}
        ctx.save_for_backward(*output[1:], *(inputs[i] for i in needed if i not in ctx.numbers))

    def gradients(ctx: Any, grad_output: Tensor | None, run: Callable[..., Any]) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * ctx.input_count
        if grad_output is not None:
            # Read once: where activations are checkpointed, reading computes them again.
            saved = ctx.saved_tensors
            kept, tensors = saved[: ctx.kept_count], iter(saved[ctx.kept_count :])
            inputs = [ctx.numbers[i] if i in ctx.numbers else next(tensors) for i in needed]
            for position, gradient in zip(trained, run(grad_output, list(kept), *inputs), strict=True):
                found[position] = gradient
        return tuple(found)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> tuple[Tensor, ...]:
            return tuple(forward(*inputs))

        setup_context = staticmethod(keep)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
            return gradients(ctx, grad_output, backward)

    operator.register_autograd(
        lambda ctx, grads: gradients(ctx, grads[0], backward_operator), setup_context=keep
    )

    def run(*inputs: Any) -> Tensor:
        return (operator if torch.compiler.is_compiling() else Eager.apply)(*inputs)[0]

    return run
