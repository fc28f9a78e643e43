"""Digests and perceptual hashes of the images, and the samples that show the same image according to them.

A perceptual hash says which of the low frequencies of an image are strong. If images of the synthetic data
set are compressed again at quality 75, 95 % of them differ from the original in less than a tenth of the
bits; no two images of different identities differ in less than a fifth. Each modality is compared separately:
if the RGB file of a sample was copied over that of another, both still have their own NIR and TIR. The table
of hashes is made once; the search for copies in it takes seconds.
"""

import hashlib
from dataclasses import dataclass
from itertools import combinations

import imagehash
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from data_catalog.progress import Progress, no_progress
from data_catalog.samples.images import decode_triplets
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import IMAGE_HASHES_SCHEMA, TableKind
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table
from stmi.modality import MODALITIES

HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
"""Bits of the hash of one image. The usual 64 do not distinguish thermal images of one camera."""

_CHUNK_ROWS = 1024
MANY_IDENTITIES = 10
"""An image with more identities than this is not a copied sample but a repeated frame."""
_REDUCED = (32, 32)
# Standard deviation of the reduced image, in grey values. Below it the hash depends on noise (RGB at night),
# or there is nothing to compare (a frame of one colour).
_LEAST_DETAIL_OF_HASH = 4.0
_LEAST_DETAIL_OF_DIGEST = 1.0

Pair = tuple[int, int]
"""Two row numbers, the smaller first."""


def make_image_hashes(samples: Table, progress: Progress = no_progress) -> Table:
    """The `image_hashes` table of a samples table.

    Args:
        samples: What to hash.
        progress: Called as shards complete.
    """
    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.IMAGE_HASHES,
        settings={"hash": "phash", "bits": HASH_BITS},
        inputs={"samples": samples.digest},
        specs=range(len(samples.manifest.shards)),
        maker=_HashesMaker(samples),
        summarise=lambda shards: {},
        progress=progress,
    )


@dataclass(frozen=True)
class _HashesMaker(ShardMaker[int]):
    is_light = True

    samples: Table

    def make(self, number: int) -> tuple[pa.Table, Statistics]:
        samples = self.samples.read_shard(number)
        digests, hashes, details = [], [], []
        for row in range(samples.num_rows):
            # One row at a time, because a shard of decoded images needs much memory.
            pixels = decode_triplets(samples.slice(row, 1))[0]
            images = [Image.fromarray(image).convert("L") for image in pixels]
            bits = [imagehash.phash(image, hash_size=HASH_SIDE).hash for image in images]
            digests.append(b"".join(hashlib.sha256(image.tobytes()).digest() for image in pixels))
            hashes.append(np.packbits(np.stack(bits)).tobytes())
            details.append([_detail(image) for image in images])
        columns = [samples["sample_index"], samples["sample_id"], digests, hashes, details]
        return pa.table(columns, schema=IMAGE_HASHES_SCHEMA), {}


def _detail(image: Image.Image) -> float:
    """Standard deviation of a grey image after it is reduced, which suppresses noise."""
    return float(np.asarray(image.resize(_REDUCED, Image.Resampling.BOX)).std())


@dataclass(frozen=True)
class ImageHashes:
    """The hashes of the images of all samples, by `sample_index`.

    Attributes:
        digests: SHA-256 of the pixels, uint8 `(samples, modality, 32)`.
        bits: Perceptual hashes, uint8 0 or 1, `(samples, modality, bits)`.
        details: Standard deviation of the grey values of the reduced image, `(samples, modality)`.
    """

    digests: npt.NDArray[np.uint8]
    bits: npt.NDArray[np.uint8]
    details: npt.NDArray[np.float32]


def read_hashes(table: Table) -> ImageHashes:
    """The rows of a table of hashes."""
    rows = table.read(["digests", "hashes", "details"])
    digests, hashes = (
        np.frombuffer(b"".join(rows[name].to_pylist()), dtype=np.uint8) for name in ("digests", "hashes")
    )
    samples, modalities = rows.num_rows, len(MODALITIES)
    return ImageHashes(
        digests=digests.reshape(samples, modalities, hashlib.sha256().digest_size),
        bits=np.unpackbits(hashes).reshape(samples, modalities, HASH_BITS),
        details=np.array(rows["details"].to_pylist(), dtype=np.float32).reshape(samples, modalities),
    )


def find_copies(
    hashes: ImageHashes, identity: npt.NDArray[np.int64], largest_distance: int
) -> dict[Pair, tuple[str, ...]]:
    """Find pairs of samples of different identities that show the same image, and in which modalities.

    Frames without detail are left out: at night, or of one colour, they look the same for all identities. So
    are frames with many identities: a camera that repeats a frame says nothing about the labels.

    Args:
        hashes: Hashes of all samples.
        identity: Identity of each, `(samples,)`.
        largest_distance: Bits in which the hashes of copies may differ.
    """
    found: dict[Pair, tuple[str, ...]] = {}
    for number, modality in enumerate(MODALITIES):
        detail = hashes.details[:, number]
        pairs: set[Pair] = set()
        rows = np.flatnonzero(detail >= _LEAST_DETAIL_OF_DIGEST)
        near = _equal_pairs(hashes.digests[rows, number], identity[rows])
        pairs |= {(int(rows[i]), int(rows[j])) for i, j in near}
        rows = np.flatnonzero(detail >= _LEAST_DETAIL_OF_HASH)
        near = near_pairs(hashes.bits[rows, number], identity[rows], largest_distance)
        pairs |= {(int(rows[i]), int(rows[j])) for i, j in near}
        for pair in pairs:
            found[pair] = (*found.get(pair, ()), modality.value)
    return dict(sorted(found.items()))


def find_repeated_frames(
    hashes: ImageHashes, identity: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.int64]]:
    """By modality, the samples whose image occurs pixel by pixel in more than `MANY_IDENTITIES` identities.

    Args:
        hashes: Hashes of all samples.
        identity: Identity of each, `(samples,)`.
    """
    found = {}
    for number, modality in enumerate(MODALITIES):
        rows = np.flatnonzero(hashes.details[:, number] >= _LEAST_DETAIL_OF_DIGEST)
        groups = _groups(hashes.digests[rows, number], identity[rows])
        many = [row for group, count in groups if count > MANY_IDENTITIES for row in group]
        if many:
            found[modality.value] = rows[np.sort(many)]
    return found


def near_pairs(
    bits: npt.NDArray[np.uint8], identity: npt.NDArray[np.int64], largest_distance: int
) -> list[Pair]:
    """Pairs of rows of different identities that differ in few bits, sorted.

    Every row is compared with every other in matrix products, which takes seconds for the largest data set.
    Rows that are near those of many identities are left out.

    Args:
        bits: 0 or 1, `(rows, bits)`.
        identity: Identity of each, `(rows,)`.
        largest_distance: Bits in which the two of a pair may differ.
    """
    signs = bits.astype(np.float32) * 2 - 1
    others: dict[int, list[int]] = {}
    for start in range(0, len(signs), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        # The product of signs is the number of equal bits minus the number of different bits.
        near = signs[chunk] @ signs.T >= signs.shape[1] - 2 * largest_distance
        near &= identity[chunk, None] != identity[None]
        for row in np.flatnonzero(near.any(axis=1)):
            found = np.flatnonzero(near[row])
            if len(np.unique(identity[found])) < MANY_IDENTITIES:
                others[start + int(row)] = found.tolist()
    return [(i, j) for i, near_i in others.items() for j in near_i if i < j and j in others]


def _groups(values: npt.NDArray[np.uint8], identity: npt.NDArray[np.int64]) -> list[tuple[list[int], int]]:
    """Rows of equal values, and how many identities they have."""
    by_value: dict[bytes, list[int]] = {}
    for row, value in enumerate(values):
        by_value.setdefault(value.tobytes(), []).append(row)
    return [(rows, len(np.unique(identity[rows]))) for rows in by_value.values()]


def _equal_pairs(values: npt.NDArray[np.uint8], identity: npt.NDArray[np.int64]) -> list[Pair]:
    return [
        (i, j)
        for rows, identities in _groups(values, identity)
        if identities <= MANY_IDENTITIES
        for i, j in combinations(rows, 2)
        if identity[i] != identity[j]
    ]
