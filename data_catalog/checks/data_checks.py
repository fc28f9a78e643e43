"""Checks of a data set before a GPU is used, and the samples that fail them.

An error stops a run; a warning is logged with it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from data_catalog.checks.card_differences import count, describe_differences, differences
from data_catalog.checks.findings import CheckReport, Findings
from data_catalog.checks.image_hashes import (
    HASH_BITS,
    MANY_IDENTITIES,
    ImageHashes,
    find_copies,
    find_repeated_frames,
    make_image_hashes,
    read_hashes,
)
from data_catalog.checks.measurement_checks import check_measurement, check_missing
from data_catalog.checks.newest_tables import NewestTables, find_card
from data_catalog.errors import name_first
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.samples.camera_numbers import first_camera
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table
from stmi.config import LARGEST_COUNT
from stmi.retrieval.metrics import JunkRule

if TYPE_CHECKING:
    import pandas as pd

_LABELS = ("sample_id", "split", "identity", "camera_id", "scene_id", "is_query", "is_gallery", "digest")


class CheckSettings(Record):
    """Limits of the checks."""

    samples_per_identity: int = Field(4, ge=1, le=LARGEST_COUNT)
    """Samples of an identity that a batch needs."""
    junk: JunkRule | None = None
    """What a query has in common with its junk; None for what the card says, or the camera without a card."""
    near_empty: float = Field(0.01, ge=0, le=1)
    """A mask with less foreground than this share is near-empty."""
    near_full: float = Field(0.95, ge=0, le=1)
    """A mask with more foreground than this share is near-full."""
    images: bool = True
    """Whether to look for images with two identities; decodes all images once."""
    duplicate_bits: int = Field(24, ge=0, le=HASH_BITS // 4)
    """How many of the 256 bits of the perceptual hash may differ between copies of an image."""


def run_checks(
    tables: NewestTables, settings: CheckSettings | None = None, progress: Progress = no_progress
) -> CheckReport:
    """Every check of a data set.

    The perceptual hashes are made by Ray Data at the first call and stored as a table; everything else reads
    only labels, which takes about a second.

    Args:
        tables: The tables, see `data_catalog.checks.newest_tables.find_newest_tables`.
        settings: Limits of the checks.
        progress: Called as shards are hashed.

    Raises:
        NotWritableError: If there are no hashes yet and the catalog cannot be written to.
    """
    settings = settings or CheckSettings()
    labels = tables.samples.read(_LABELS).to_pandas()
    junk = junk_rule(tables.samples, settings)
    findings = Findings()
    for split, rows in labels[labels.is_query | labels.is_gallery].groupby("split"):
        check_measurement(str(split), rows, junk, findings)
    for split, missing in tables.samples.statistics.get("missing", {}).items():
        check_missing(split, missing, findings)
    _check_card(tables.samples, findings)
    _check_cameras(tables.samples, labels, findings)
    _check_separate_queries(tables.samples, findings)
    _check_splits(labels, findings)
    _check_identities(labels, settings.samples_per_identity, findings)
    _check_tables(tables, findings)
    if tables.masks is not None:
        _check_masks(tables.masks, settings, findings)
    if tables.captions is not None:
        _check_captions(tables.captions, findings)
    if settings.images:
        hashes = read_hashes(make_image_hashes(tables.samples, progress))
        _check_duplicates(labels, hashes, settings.duplicate_bits, findings)
    return findings.report()


def junk_rule(samples: Table, settings: CheckSettings) -> JunkRule:
    """What a query has in common with its junk: as the settings say, or the data set's card, or `camera`."""
    card = find_card(samples)
    return settings.junk or (card.protocol.junk if card else "camera")


def _check_card(samples: Table, findings: Findings) -> None:
    """What is published of a data set shows that a copy of it is complete."""
    card = find_card(samples)
    different = [] if card is None else differences(card, samples, count(samples))
    # Another size or other cameras are no missing samples; `show` names them.
    different = [one for one in different if one.split]
    if card is not None and different:
        findings.warn(
            "differs_from_card",
            f"found, and in brackets on the card {card.name}: {describe_differences(different)}; complete "
            "the copy and ingest again, unless it is a part on purpose or a data set of your own in that "
            "layout",
        )


def _check_separate_queries(samples: Table, findings: Findings) -> None:
    # Tables of earlier versions have none.
    if separate := samples.statistics.get("separate_queries"):
        findings.warn(
            "query_is_no_copy",
            f"{len(separate)} queries are no copies of the gallery's file of their name "
            f"({name_first(separate)}), so each is a sample of its own; copy the gallery's files over them "
            "if they should be, and ingest again",
            separate,
        )


def _check_cameras(samples: Table, labels: "pd.DataFrame", findings: Findings) -> None:
    """A camera embedding (`model.camera_embedding`) learns nothing of a camera without training samples."""
    trained = set(labels.camera_id[labels.split == "train"])
    others = labels[~labels.camera_id.isin(trained)]
    for split, rows in others.groupby("split") if trained else ():
        cameras = sorted(rows.camera_id.unique() + first_camera(samples))
        findings.warn(
            "untrained_camera",
            f"{len(rows)} samples of split {split!r} are of cameras that no training sample is of "
            f"({name_first(cameras)}); a model with model.camera_embedding takes the mean of the trained "
            "cameras for them, so compare with a model without it",
            rows.sample_id,
        )


def _check_splits(labels: "pd.DataFrame", findings: Findings) -> None:
    splits = labels.groupby("identity").split.unique()
    shared = splits[splits.map(len) > 1]
    if len(shared):
        named = [f"{identity} in {' and '.join(sorted(names))}" for identity, names in shared.items()]
        findings.error(
            "identity_in_two_splits",
            f"{len(shared)} identities are in more than one split ({name_first(named)}), so what is tested "
            "was trained on; move their images to one split and ingest again",
            labels.sample_id[labels.identity.isin(shared.index)],
        )


def _check_identities(labels: "pd.DataFrame", samples_per_identity: int, findings: Findings) -> None:
    train = labels[labels.split == "train"]
    counts = train.identity.value_counts().sort_index()
    few = counts[counts < samples_per_identity]
    if len(few):
        named = [f"{identity} has {count}" for identity, count in few.items()]
        findings.warn(
            "few_samples",
            f"{len(few)} training identities have fewer samples than the {samples_per_identity} that a batch "
            f"needs ({name_first(named)}); some of theirs will be sampled twice",
            train.sample_id[train.identity.isin(few.index)],
        )


def _check_tables(tables: NewestTables, findings: Findings) -> None:
    splits = tables.samples.statistics["splits"]
    without_view = [split for split in splits if split not in tables.views]
    for split in without_view:
        findings.error(
            "missing_artifact",
            f"split {split!r} has no view; run `python -m data_catalog view --split {split}`",
        )
    made = {f"view {split}": view for split, view in tables.views.items()}
    if tables.text_features is not None:
        made["text_features"] = tables.text_features
    for what, table in made.items():
        for source, digest in table.manifest.inputs.items():
            newest = tables.named.get(source)
            if newest is not None and newest.digest != digest:
                step = table.kind.value.replace("_", "-")
                findings.warn(
                    "outdated_artifact",
                    f"{what} was made from other {source} ({digest[:12]}) than the newest, which are checked "
                    f"here ({newest.digest[:12]}); run `python -m data_catalog {step}` again to use those",
                )
    for name in (TableKind.MASKS, TableKind.CAPTIONS, TableKind.TEXT_FEATURES):
        if name.value not in tables.named:
            # A user may make views without masks and text on purpose.
            add: Callable[[str, str], None] = findings.error if without_view else findings.warn
            step = name.value.replace("_", "-")
            add("missing_artifact", f"there is no {name.value} table; run `python -m data_catalog {step}`")


def _check_masks(masks: Table, settings: CheckSettings, findings: Findings) -> None:
    rows = masks.read(["sample_id", "foreground_fraction", "source"]).to_pandas()
    missing, fraction = rows.source == "missing", rows.foreground_fraction
    near_empty, near_full = fraction < settings.near_empty, fraction > settings.near_full
    for check, broken, what in (
        ("missing_mask", missing, "samples have no mask, so every pixel of them is foreground"),
        (
            "near_empty_mask",
            ~missing & near_empty,
            f"masks hold less than {settings.near_empty:.0%} foreground",
        ),
        ("near_full_mask", ~missing & near_full, f"masks hold more than {settings.near_full:.0%} foreground"),
    ):
        ids = rows.sample_id[broken]
        if len(ids):
            message = (
                f"{len(ids)} of {len(rows)} {what} ({name_first(ids)}); look at them, or make them again"
            )
            findings.warn(check, message, ids)


def _check_captions(captions: Table, findings: Findings) -> None:
    rows = captions.read(["sample_id", "caption"]).to_pylist()
    empty = [row["sample_id"] for row in rows if not row["caption"].strip()]
    if empty:
        findings.warn("empty_caption", f"{len(empty)} captions are empty ({name_first(empty)})", empty)


def _check_duplicates(
    labels: "pd.DataFrame", hashes: ImageHashes, largest_distance: int, findings: Findings
) -> None:
    ids, identity = labels.sample_id.to_numpy(), labels.identity.to_numpy()
    for modality, rows in find_repeated_frames(hashes, identity).items():
        findings.warn(
            "repeated_frames",
            f"{len(rows)} samples of more than {MANY_IDENTITIES} identities show the same {modality} "
            f"image ({name_first(ids[rows])}); a camera repeated it, or the files were mixed up",
            ids[rows],
        )
    pairs = find_copies(hashes, identity, largest_distance)
    if not pairs:
        return
    named = [
        f"{ids[i]} of {identity[i]} and {ids[j]} of {identity[j]} in {' and '.join(modalities)}"
        for (i, j), modalities in pairs.items()
    ]
    findings.warn(
        "duplicate_images",
        f"{len(pairs)} pairs of samples show the same image and have different identities "
        f"({name_first(named)}); one of the two labels, or one of the two files, is probably wrong",
        ids[sorted({row for pair in pairs for row in pair})],
    )
