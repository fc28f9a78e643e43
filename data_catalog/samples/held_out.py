"""Validation identities where a data set has none: some of its training identities, held out of training."""

from collections.abc import Sequence
from dataclasses import replace

from data_catalog.errors import CatalogError
from data_catalog.formats import SourceSample
from data_catalog.tables.table import Table
from stmi import keyed_random


def hold_out(samples: Sequence[SourceSample], identities: int) -> tuple[SourceSample, ...]:
    """The samples with some training identities moved to the split `val`, each sample both query and gallery.

    Which ones depends on the identities alone, so that every run of a study chooses by the same. Only
    identities seen under two cameras (or scenes, where the data set has them) can be chosen: the others
    have no match. The samples keep their ids and their order.

    Args:
        samples: Of all splits.
        identities: How many to hold out; 0 leaves all as they are.

    Raises:
        CatalogError: The data set has validation identities, or too few training identities.
    """
    if identities == 0:
        return tuple(samples)
    if any(sample.split == "val" for sample in samples):
        raise CatalogError(
            f"validation_identities={identities}: the data set has a split val of its own; leave it out"
        )
    places: dict[int, set[int]] = {}
    for sample in samples:
        if sample.split == "train":
            place = sample.camera_id if sample.scene_id < 0 else sample.scene_id
            places.setdefault(sample.identity, set()).add(place)
    matched = sorted(identity for identity, seen in places.items() if len(seen) > 1)
    if identities > len(matched) or len(places) - identities < 2:
        raise CatalogError(
            f"validation_identities={identities}: of {len(places)} training identities {len(matched)} are "
            "seen under two cameras (or scenes), and two must be left to train on; hold out fewer"
        )
    draw = keyed_random.generator(0, "validation_identities").permutation(matched)
    chosen = set(draw[:identities].tolist())
    return tuple(
        replace(sample, split="val", is_query=True, is_gallery=True)
        if sample.split == "train" and sample.identity in chosen
        else sample
        for sample in samples
    )


def splits_on_disk(samples: Table) -> list[str]:
    """The splits of a samples table that have files of their own, sorted.

    What belongs to identities that were held out (captions, readings) is in the files of the training split.
    """
    splits = set(samples.statistics["splits"])
    if samples.manifest.settings.get("validation_identities"):
        splits.remove("val")
    return sorted(splits)
