"""Perceptual hashes of the images, and the samples that look the same by them.

A perceptual hash keeps which of the low frequencies of an image are strong. A copy that was compressed or
resized anew has nearly the same 64 bits, another image differs in about half of them. The table of hashes
is made once; looking for duplicates in it takes seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from data_catalog.building import Progress, ShardMaker, build_table
from data_catalog.images import decode_triplets
from data_catalog.schemas import IMAGE_HASHES_SCHEMA, TableKind
from data_catalog.tables import Table

HASH_BITS = 3 * 64
"""Bits of the hashes of a sample's three images together."""

_CHUNK_ROWS = 1024
# What an image of one colour has: no frequency, or the mean alone.
_FLAT_BITS = 1


def make_image_hashes(samples: Table, progress: Progress | None = None) -> Table:
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
        work=[{"shard": number} for number in range(len(samples.manifest.shards))],
        maker=_HashesMaker(samples),
        summarise=lambda shards: {},
        progress=progress,
    )


@dataclass(frozen=True)
class _HashesMaker(ShardMaker):
    samples: Table

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        samples = self.samples.read_shard(work["shard"])
        hashes = []
        for row in range(samples.num_rows):
            # One row at a time: a shard of decoded images is much memory.
            images = decode_triplets(samples.slice(row, 1))[0]
            bits = [imagehash.phash(Image.fromarray(image)).hash for image in images]
            hashes.append(np.packbits(np.stack(bits)).tobytes())
        column = pa.array(hashes, IMAGE_HASHES_SCHEMA.field("hashes").type)
        return pa.table(
            [samples["sample_index"], samples["sample_id"], column], schema=IMAGE_HASHES_SCHEMA
        ), {}


def read_hashes(table: Table) -> npt.NDArray[np.uint8]:
    """The hashes of a table as bits, uint8 0 or 1 `(samples, bits)`, by `sample_index`."""
    hashes = b"".join(table.read(["hashes"])["hashes"].to_pylist())
    return np.unpackbits(np.frombuffer(hashes, dtype=np.uint8)).reshape(-1, HASH_BITS)


def find_look_alikes(
    bits: npt.NDArray[np.uint8], identity: npt.NDArray[np.int64], largest_distance: int
) -> list[tuple[int, int]]:
    """Pairs of samples of different identities whose hashes differ in few bits.

    Hashes that differ in at most `d` bits agree fully in one of `d + 1` parts of them, so only samples that
    share a part are compared. Every part holds bits of all three images: many images are dark at night, few
    samples are dark in all three. A sample whose images are all of one colour is no look-alike of any other.

    Args:
        bits: Hashes, 0 or 1, `(samples, bits)`.
        identity: Identity of each, `(samples,)`.
        largest_distance: Bits in which look-alikes may differ.

    Returns:
        Row numbers, the smaller first, sorted.
    """
    parts = largest_distance + 1
    rows = np.flatnonzero((bits.reshape(len(bits), 3, -1).sum(axis=2) > _FLAT_BITS).any(axis=1))
    signs = bits[rows].astype(np.float32) * 2 - 1
    pairs: set[tuple[int, int]] = set()
    for part in range(parts):
        _, key = np.unique(np.packbits(bits[rows][:, part::parts], axis=1), axis=0, return_inverse=True)
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order])) + 1
        for group in np.split(order, starts):
            if len(np.unique(identity[rows[group]])) > 1:
                pairs |= _near(signs, rows, group, identity, largest_distance)
    return sorted(pairs)


def _near(
    signs: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    identity: npt.NDArray[np.int64],
    largest_distance: int,
) -> set[tuple[int, int]]:
    """Pairs within a group that are near and of different identities."""
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(group), _CHUNK_ROWS):
        chunk = group[start : start + _CHUNK_ROWS]
        # Of signs the product counts agreements less disagreements.
        distance = (signs.shape[1] - signs[chunk] @ signs[group].T) / 2
        other = identity[rows[chunk]][:, None] != identity[rows[group]][None]
        for i, j in np.argwhere((distance <= largest_distance) & other):
            first, second = sorted((int(rows[chunk[i]]), int(rows[group[j]])))
            pairs.add((first, second))
    return pairs
