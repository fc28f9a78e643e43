"""The oracle for every gradient: finite differences in float64."""

import torch
from torch import Tensor


def gradients_agree(module: torch.nn.Module, *inputs: Tensor, fast: bool = False) -> bool:
    """Whether the gradients of a module's inputs and of all its weights are those of finite differences.

    The weights are moved off the zeros and ones that some of them start at.

    Args:
        module: What gives one tensor or a tuple of them.
        inputs: Its arguments, differentiable or not.
        fast: Look along one random direction of each input and weight, where they are too many to be moved
            one by one.
    """
    module = module.double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    weights = dict(module.named_parameters())

    def run(*given: Tensor) -> Tensor:
        named = dict(zip(weights, given[len(inputs) :], strict=True))
        return torch.func.functional_call(module, named, given[: len(inputs)])

    return torch.autograd.gradcheck(run, (*inputs, *weights.values()), fast_mode=fast)
