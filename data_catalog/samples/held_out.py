"""Validation identities for data sets without a validation split: training identities that are held out."""

from collections.abc import Sequence
from dataclasses import replace

from data_catalog.errors import CatalogError
from data_catalog.formats import SourceSample
from data_catalog.tables.table import Table
from stmi import keyed_random


def hold_out(samples: Sequence[SourceSample], identities: int) -> tuple[SourceSample, ...]:
    """Move some training identities to the split `val`, each of their samples both query and gallery.

    The choice depends only on the identities, so all runs of a study have the same. Only identities with two
    cameras (or scenes, if the data set has them) can be chosen, because the others have no match. Sample ids
    and order stay the same.

    Args:
        samples: Samples of all splits.
        identities: How many to hold out; 0 changes nothing.

    Raises:
        CatalogError: The data set has validation identities, or too few training identities.
    """
    if identities == 0:
        return tuple(samples)
    if any(sample.split == "val" for sample in samples):
        raise CatalogError(
            f"validation_identities={identities}: the data set has a split val of its own; leave it out"
        )
    views: dict[int, set[int | str]] = {}
    for sample in samples:
        if sample.split == "train":
            view = sample.camera_id if sample.scene_id < 0 else sample.scene_id
            # Without cameras every other sample of an identity is a match.
            views.setdefault(sample.identity, set()).add(sample.sample_id if view < 0 else view)
    matched = sorted(identity for identity, seen in views.items() if len(seen) > 1)
    if identities > len(matched) or len(views) - identities < 2:
        raise CatalogError(
            f"validation_identities={identities}: of {len(views)} training identities {len(matched)} have "
            "two cameras (or scenes), and two identities must be left for training; hold out fewer"
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

    Captions and attribute predictions of held-out identities are in the files of the training split.
    """
    splits = set(samples.statistics["splits"])
    if samples.manifest.settings.get("validation_identities"):
        splits.remove("val")
    return sorted(splits)
