"""What a data set holds, and where that differs from its card."""

from collections.abc import Sequence
from typing import Any

from data_catalog.cards import Card
from data_catalog.records import Record
from data_catalog.tables.table import Table

_COUNTED = ("samples", "identities", "queries", "gallery")


class SplitCounts(Record):
    """What a split holds."""

    samples: int
    identities: int
    cameras: int
    queries: int
    gallery: int


class Difference(Record):
    """A value on the card that differs from what was found."""

    split: str
    """Empty where it is about the whole data set."""
    what: str
    """What was compared: `samples`, `image_size`, ..."""
    card: int | str | tuple[int, ...]
    found: int | str | tuple[int, ...]


def count(samples: Table) -> dict[str, SplitCounts]:
    """What each split holds."""
    labels = samples.read(["split", "identity", "camera_id", "is_query", "is_gallery"]).to_pandas()
    return {
        str(split): SplitCounts(
            samples=len(rows),
            identities=rows.identity.nunique(),
            cameras=rows.camera_id.nunique(),
            queries=rows.is_query.sum(),
            gallery=rows.is_gallery.sum(),
        )
        for split, rows in labels.groupby("split")
    }


def differences(card: Card, samples: Table, found: dict[str, SplitCounts]) -> list[Difference]:
    """Where the card and what was found differ; what the card does not say is no difference."""
    different: list[Difference] = []

    def compare(split: str, what: str, expected: Any, actual: Any) -> None:
        if expected is not None and expected != actual:
            different.append(Difference(split=split, what=what, card=expected, found=actual))

    settings = samples.manifest.settings
    if settings.get("validation_identities") and "val" not in card.counts:
        found = _with_held_out(found)
    compare("", "format", card.format, settings["format"])
    size = settings["size"]
    compare("", "image_size", card.image_size, size if size == "any" else tuple(size))
    compare("", "cameras", card.cameras, len(samples.statistics["cameras"]))
    for split, counts in card.counts.items():
        for what in _COUNTED:
            compare(split, what, getattr(counts, what), getattr(found.get(split), what, 0))
    for split in found.keys() - card.counts.keys() if card.counts else ():
        compare(split, "samples", 0, found[split].samples)
    return different


def _with_held_out(found: dict[str, SplitCounts]) -> dict[str, SplitCounts]:
    """The counts before identities were held out of training for validation."""
    train, val = found["train"], found["val"]
    whole = train.model_copy(
        update={
            "samples": train.samples + val.samples,
            "identities": train.identities + val.identities,
        }
    )
    return {split: whole if split == "train" else counts for split, counts in found.items() if split != "val"}


def describe_differences(different: Sequence[Difference]) -> str:
    """The differences for a message: `test samples 418 (836)`, and so on."""
    return ", ".join(
        f"{f'{one.split} ' if one.split else ''}{one.what.replace('_', ' ')} {_shown(one.found)} "
        f"({_shown(one.card)})"
        for one in different
    )


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
