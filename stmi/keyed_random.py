"""Random draws as a pure function of what they are for: `(seed, purpose, counters)`.

No draw depends on how many draws came before it, on the worker that asks, or on the machine. A run
that is resumed, or spread over another number of workers, therefore sees the same numbers.

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
        counters: Where in the run they are used, usually epoch and step.
    """
    key = np.frombuffer(_key(seed, purpose, counters)[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key))


@contextmanager
def seeded_construction(seed: int, purpose: str, *counters: int | str) -> Iterator[None]:
    """Make the torch modules built inside draw their initial weights from this key.

    Torch's modules draw from its global CPU generator; it is keyed inside and put back after, so
    that neither the order of construction nor an earlier draw changes a weight.
    """
    import torch  # noqa: PLC0415 - takes seconds to import, and who only draws needs none of it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(_key(seed, purpose, counters)[:7], "little"))
        yield
