import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from stmi.training import philox

# `kat_vectors` of Random123 (Salmon et al.): counter, key and result of philox4x32 with 10 rounds.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_bits_are_those_that_its_authors_published(counter, key, expected):
    found = philox.philox(tuple(torch.tensor(word) for word in words(counter)), tuple(words(key)))
    assert found.tolist() == words(expected)


def in_integers(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as section 3.3 of the paper has it, in integers without a size."""
    a, b, c, d = counter
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = second // 2**32 ^ b ^ key[0], second % 2**32
        c, d = first // 2**32 ^ d ^ key[1], first % 2**32
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return [a, b, c, d]


def test_each_counter_of_a_tensor_has_the_bits_of_its_own():
    random = np.random.default_rng(0)
    counters, key = random.integers(0, 2**32, (50, 4)), random.integers(0, 2**32, 2).tolist()
    found = philox.philox(tuple(torch.from_numpy(counters).unbind(1)), tuple(key))
    assert found.tolist() == [in_integers(counter, key) for counter in counters.tolist()]


def test_each_counter_may_have_a_key_of_its_own():
    random = np.random.default_rng(0)
    counters, keys = (random.integers(0, 2**32, (50, words)) for words in (4, 2))
    found = philox.philox(*(tuple(torch.from_numpy(x).unbind(1)) for x in (counters, keys)))
    assert found.tolist() == [
        in_integers(*both) for both in zip(counters.tolist(), keys.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def sample():
    zero = torch.zeros(50_000, dtype=torch.int64)
    return philox.normals((torch.arange(50_000), zero, zero, zero), (1, 2)).flatten()


def test_normals_have_the_distribution_of_the_normal(sample):
    x = sample.double().numpy()
    # Four standard errors of a sample of 400,000.
    assert abs(x.mean()) < 4 / 400_000**0.5
    assert abs(x.var() - 1) < 4 * (2 / 400_000) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / 400_000) ** 0.5
    assert stats.kstest(x, "norm").pvalue > 0.01
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / 400_000**0.5


def test_normals_are_the_same_on_every_machine(sample):
    assert sample[:4].tolist() == [
        1.1173616647720337,
        -2.0167996883392334,
        0.0017785381060093641,
        0.24549129605293274,
    ]
    table = philox._normal_quantiles()
    assert (
        hashlib.sha256(table.tobytes()).hexdigest()
        == "1cfbba1e07e34386a57626f82aeb43e6ed54ba70a3ea6b7d964dc66a841074a8"
    )
    assert np.allclose(table, stats.norm.ppf((np.arange(65536) + 0.5) / 65536), atol=1e-6)
