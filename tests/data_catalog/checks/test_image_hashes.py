import hashlib
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_catalog.checks.image_hashes import (
    HASH_BITS,
    ImageHashes,
    find_copies,
    find_repeated_frames,
    make_image_hashes,
    near_pairs,
    read_hashes,
)


def test_digest_and_hash_are_those_of_the_decoded_images(built: Any) -> None:
    import imagehash  # noqa: PLC0415

    found = read_hashes(make_image_hashes(built.samples))
    assert found.bits.shape == (len(built.samples), 3, HASH_BITS)
    for row, sample in enumerate(built.samples.read().to_pylist()):
        for modality, name in enumerate(("rgb", "nir", "tir")):
            image = Image.open(io.BytesIO(sample[name]))
            digest = hashlib.sha256(np.asarray(image).tobytes()).digest()
            assert found.digests[row, modality].tobytes() == digest
            assert np.array_equal(found.bits[row, modality], imagehash.phash(image, 16).hash.ravel())
    assert (found.details > 10).all()


def make_hashes(details: list[list[float]]) -> ImageHashes:
    """Samples whose images are all the same, with as much detail as is given."""
    digests, bits = (np.ones((len(details), 3, width), dtype=np.uint8) for width in (32, HASH_BITS))
    return ImageHashes(digests, bits, np.array(details, dtype=np.float32).reshape(-1, 3))


def test_frames_without_detail_are_no_copies_unless_every_pixel_agrees() -> None:
    identity = np.array([1, 2, 2])
    # One colour, dim noise, a picture.
    hashes = make_hashes([[0.1, 2.5, 30.0]] * 3)
    assert find_copies(hashes, identity, 24) == {(0, 1): ("NIR", "TIR"), (0, 2): ("NIR", "TIR")}
    others = replace(hashes, digests=np.eye(3, 32, dtype=np.uint8)[:, None].repeat(3, axis=1))
    assert find_copies(others, identity, 24) == {(0, 1): ("TIR",), (0, 2): ("TIR",)}
    assert find_copies(make_hashes([]), np.array([], dtype=np.int64), 24) == {}


@pytest.mark.parametrize("distance", [0, 3, 6])
def test_near_pairs_are_those_of_every_pair_compared(distance: int, rng: np.random.Generator) -> None:
    bits = rng.integers(0, 2, (60, HASH_BITS), dtype=np.uint8)
    for row in range(20, 60):
        # Near copies of the first twenty, some beyond the distance.
        bits[row] = bits[row % 20]
        flipped = rng.choice(HASH_BITS, rng.integers(0, 9) if row % 3 else 0, replace=False)
        bits[row, flipped] ^= 1
    identity = rng.integers(0, 8, 60)
    expected = [
        (i, j)
        for i, j in itertools.combinations(range(60), 2)
        if identity[i] != identity[j] and np.count_nonzero(bits[i] != bits[j]) <= distance
    ]
    assert expected
    assert near_pairs(bits, identity, distance) == expected


def test_frame_that_stands_under_many_identities_is_no_copy() -> None:
    frozen = make_hashes([[30.0, 30.0, 30.0]] * 60)
    assert find_copies(frozen, np.arange(60), 24) == {}
    # One of a long shot of the same vehicle, under another identity.
    assert set(find_copies(frozen, np.arange(60) // 59, 24)) == {(row, 59) for row in range(59)}
    assert len(find_copies(frozen, np.arange(60) // 6, 24)) == 60 * 54 / 2


def test_image_of_many_identities_is_named_as_a_repeated_frame() -> None:
    frozen = make_hashes([[30.0, 0.1, 30.0]] * 24)
    apart = np.arange(24 * 32, dtype=np.uint8).reshape(24, 1, 32).repeat(3, axis=1)
    apart[:12, 2] = 7
    # In TIR twelve identities share one, in RGB all differ, and NIR shows nothing.
    found = find_repeated_frames(replace(frozen, digests=apart), np.arange(24))
    assert {modality: rows.tolist() for modality, rows in found.items()} == {"TIR": list(range(12))}
    assert find_repeated_frames(replace(frozen, digests=apart), np.arange(24) % 10) == {}


def test_hashes_of_the_largest_data_set_are_compared_in_seconds(
    rng: np.random.Generator, elapsed: Callable[[], float]
) -> None:
    # A quarter of the bits is the same in all: one camera and its background.
    bits = rng.integers(0, 2, (17_250, HASH_BITS), dtype=np.uint8)
    bits[:, :64] = bits[0, :64]
    bits[7777] = bits[42]
    bits[7777, 100:124] ^= 1
    assert near_pairs(bits, np.arange(17_250), 24) == [(42, 7777)]
    assert elapsed() < 20


@pytest.fixture
def elapsed() -> Callable[[], float]:
    import time  # noqa: PLC0415

    start = time.monotonic()
    return lambda: time.monotonic() - start
