"""Random numbers as a pure function of seed, purpose and counters.

They do not depend on how many numbers were drawn before, on the worker, or on the machine. So a run that is
resumed, or has another number of workers, gets the same numbers.

The generator is Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), which
maps a key and a counter to random bits; the key here is a SHA-256 of the purpose and its counters.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def _key(seed: int, purpose: str, counters: tuple[int | str, ...]) -> bytes:
    text = "\x1f".join([str(int(seed)), purpose, *map(str, counters)])
    return hashlib.sha256(text.encode()).digest()


def generator(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """A numpy generator for one purpose, for example `generator(seed, "flip", epoch, step)`.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for. Two purposes never share numbers.
        counters: The point of the run where they are used, usually epoch and step.
    """
    key = np.frombuffer(_key(seed, purpose, counters)[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key))


def words(seed: int, purpose: str, *counters: int | str) -> tuple[int, int]:
    """Two words of 32 bits, the key of a generator on another device; arguments are those of `generator`."""
    first, second = np.frombuffer(_key(seed, purpose, counters)[:8], dtype="<u4").tolist()
    return first, second


@contextmanager
def seeded_construction(seed: int, purpose: str, *counters: int | str) -> Iterator[None]:
    """Give the torch modules that are built inside initial weights from this key.

    Torch's modules use its global CPU generator. Here it is seeded by the key, and restored afterwards, so
    that neither the order of construction nor earlier random numbers change a weight.
    """
    import torch  # noqa: PLC0415 - takes seconds to import, and `generator` does not need it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(_key(seed, purpose, counters)[:7], "little"))
        yield
