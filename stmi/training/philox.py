"""Random numbers of a counter, in tensor operations: the same bits on every device.

Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Every number is a
function of a key and a counter, so that any of them can be computed on any worker, alone or with others.
"""

from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW_32 = 0xFFFFFFFF
_LOW_16 = 0xFFFF

NORMALS_PER_COUNTER = 8
"""How many numbers `normals` makes of 128 bits."""


Key = tuple[int | Tensor, int | Tensor]
"""Two words of 32 bits; as int64 tensors of the counter's shape, each counter has its own."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> Tensor:
    """128 random bits for each counter.

    Args:
        counter: Four words of 32 bits, as int64 tensors that broadcast to one shape.
        key: The key of the numbers.

    Returns:
        Four words of 32 bits, int64 `(..., 4)`.
    """
    words = list(torch.broadcast_tensors(*counter))
    for turn in range(ROUNDS):
        # Bits of a key above the 32nd are cut off with those of the product.
        keys = [word + turn * step for word, step in zip(key, _KEY_STEPS, strict=True)]
        # A product may exceed the 63 bits of int64. It then wraps around, but its 64 bits are right.
        products = [words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]]
        high = [product >> 32 for product in products]
        words = [
            high[1].bitwise_xor_(words[1]).bitwise_xor_(keys[0]).bitwise_and_(_LOW_32),
            products[1].bitwise_and_(_LOW_32),
            high[0].bitwise_xor_(words[3]).bitwise_xor_(keys[1]).bitwise_and_(_LOW_32),
            products[0].bitwise_and_(_LOW_32),
        ]
    return torch.stack(words, dim=-1)


def normals(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> Tensor:
    """Standard normal numbers for each counter, float32 `(..., 8)`.

    A number is the normal quantile of 16 bits, read from a table: logarithms and sines, which other methods
    need, differ between devices in their last bits. The largest number is 4.3.

    Args:
        counter: As `philox` has it.
        key: As `philox` has it.
    """
    words = philox(counter, key)
    halves = torch.stack([words & _LOW_16, words >> 16], dim=-1).flatten(-2)
    return torch.from_numpy(_normal_quantiles()).to(words.device).take(halves)


@cache
def _normal_quantiles() -> np.ndarray:
    """The normal quantiles of the middles of 2^16 equal parts of [0, 1], float32."""
    size = _LOW_16 + 1
    quantile = NormalDist().inv_cdf
    lower = np.array([quantile((i + 0.5) / size) for i in range(size // 2)], dtype=np.float32)
    return np.concatenate([lower, -lower[::-1]])
