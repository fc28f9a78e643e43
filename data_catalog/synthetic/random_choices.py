"""Random choices that are the same on every machine."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from stmi.keyed_random import generator

Choice = TypeVar("Choice")


class RandomChoices:
    """A stream of random choices for one purpose, for example `RandomChoices(seed, "scene", camera)`.

    All of them derive from two things whose bits do not depend on the CPU or the compiler: doubles with 53
    random bits, and random bytes. (numpy's `uniform` and `normal` compute in compiled code, which may round
    differently on another CPU.)
    """

    def __init__(self, seed: int, purpose: str, *counters: int | str) -> None:
        self._generator = generator(seed, f"synthetic {purpose}", *counters)
        self._buffered: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._buffered:
            self._buffered = self._generator.random(64).tolist()
        return low + (high - low) * self._buffered.pop()

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def pick(self, choices: Sequence[Choice]) -> Choice:
        """One of the choices, all equally likely."""
        return choices[int(self.uniform() * len(choices))]

    def pick_common(self, choices: Sequence[Choice], common: float) -> Choice:
        """The first choice with probability `common`, else one of the others."""
        return choices[0] if self.chance(common) else self.pick(choices[1:])

    def octets(self, *shape: int) -> np.ndarray:
        """Random bytes: an array of the shape, int32, values 0 to 255."""
        count = int(np.prod(shape))
        return np.frombuffer(self._generator.bytes(count), dtype=np.uint8).reshape(shape).astype(np.int32)

    def noise(self, *shape: int) -> np.ndarray:
        """Noise around zero: an array of the shape, int32, triangular over -255 to 255."""
        both = self.octets(2, *shape)
        return both[0] - both[1]
