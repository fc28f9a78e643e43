"""Whether the queries and the gallery of a split can measure anything.

A gallery without a wrong sample gives every model an mAP of 100, and a gallery without a right one gives no
score. Whoever measures asks first: the checks of a data set, a run, and an evaluation.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from data_catalog.checks.findings import Findings
from data_catalog.errors import name_first
from stmi.retrieval.metrics import JunkRule, applied_rule, junk_groups

if TYPE_CHECKING:
    import pandas as pd

RANKS = (5, 10)
"""Ranks that results show beside the first."""


def check_measurement(split: str, rows: "pd.DataFrame", junk: JunkRule, findings: Findings) -> None:
    """Check the queries and the gallery of one split.

    Args:
        split: Its name; what a run chooses on `val` is no result, so less stops it.
        rows: A row for each sample: `sample_id`, `identity`, `camera_id`, `scene_id`, `is_query`,
            `is_gallery`, and `digest` where equal files are to be found.
        junk: What a query has in common with its junk.
        findings: Gets what does not hold.
    """
    rows = rows.assign(group=junk_groups(junk, rows.camera_id.to_numpy(), rows.scene_id.to_numpy()))
    queries, gallery = rows[rows.is_query], rows[rows.is_gallery]
    if queries.empty:
        findings.error(
            "no_queries", f"split {split!r} has no queries; ingest a source that has, or evaluate another"
        )
        return
    junk = applied_rule(junk, rows.camera_id.to_numpy())
    if junk == "none":
        findings.warn(
            "no_junk_rule",
            f"split {split!r}: the junk rule is none, so of a query's identity only the query itself is left "
            "out, and what its own camera saw just before is a match; with a camera for every sample the "
            "junk rule would be the camera",
        )
    matched = _check_matches(split, queries, gallery, junk, findings)
    if matched.empty:
        return
    _check_wrong_samples(split, matched, gallery, findings)
    if junk == "scene" and rows.camera_id.nunique() == 1:
        findings.warn(
            "one_camera",
            f"all samples of split {split!r} are of one camera, so nothing is found across cameras; ingest "
            "those of the other cameras, too",
        )
    if "digest" in rows:
        _check_copies(split, matched, gallery, junk, findings)


def check_missing(split: str, missing: Mapping[str, int], findings: Findings) -> None:
    """Say how many images samples of a split lack, by modality."""
    if count := sum(missing.values()):
        named = ", ".join(f"{modality} {number}" for modality, number in missing.items() if number)
        findings.warn(
            "missing_images",
            f"split {split!r}: samples lack {count} image{'s' if count > 1 else ''} ({named}); zeros take "
            "their place, so compare with models that had the same",
        )


def _check_matches(
    split: str, queries: "pd.DataFrame", gallery: "pd.DataFrame", junk: JunkRule, findings: Findings
) -> "pd.DataFrame":
    """Every query needs a gallery sample of its identity that is not its junk; gives those that have one."""
    seen = gallery.groupby("identity").group.agg(set).to_dict()
    pairs = zip(queries.identity, queries.group, strict=True)
    is_alone = [not seen.get(identity, set()) - {value} for identity, value in pairs]
    alone = queries.sample_id[is_alone]
    message = (
        f"{len(alone)} of {len(queries)} queries of split {split!r} have no match in the gallery"
        f"{_under_another(junk)} ({name_first(alone)})"
    )
    if len(alone) == len(queries):
        message += ", so nothing can be measured; check the split and the junk rule"
        findings.error("query_without_match", message, alone)
    elif len(alone):
        findings.warn("query_without_match", f"{message}; they are left out of the scores", alone)
    return queries[[not alone for alone in is_alone]]


def _check_wrong_samples(
    split: str, queries: "pd.DataFrame", gallery: "pd.DataFrame", findings: Findings
) -> None:
    """A query needs gallery samples of other identities, and more of them than the ranks that are shown."""
    own = gallery.identity.value_counts()
    wrong = len(gallery) - queries.identity.map(own)
    if not wrong.any():
        add = findings.warn if split == "val" else findings.error
        add(
            "nothing_wrong_to_retrieve",
            f"the gallery of split {split!r} holds one identity, {gallery.identity.iloc[0]}, so every "
            "ranking is right and every model has an mAP of 100 %; add samples of other identities and "
            "ingest again",
        )
        return
    if split == "val":
        # An epoch is chosen by mAP; ranks are shown for `test` alone.
        return
    certain = {rank: int((wrong < rank).sum()) for rank in RANKS}
    named = [f"rank {rank} counts {count}" for rank, count in certain.items() if count]
    if named:
        findings.warn(
            "small_gallery",
            f"split {split!r}: {' and '.join(named)} of {len(queries)} queries as found whatever the model "
            f"does, since the gallery holds fewer wrong samples for them ({wrong.min()} for the first); "
            "compare mAP and rank 1, or add identities",
        )


def _check_copies(
    split: str, queries: "pd.DataFrame", gallery: "pd.DataFrame", junk: JunkRule, findings: Findings
) -> None:
    """A query must not have its own files in the gallery under another camera (or scene)."""
    stored = gallery.groupby(["identity", "digest"]).group.agg(set).to_dict()
    pairs = zip(zip(queries.identity, queries.digest, strict=True), queries.group, strict=True)
    copied = queries.sample_id[[bool(stored.get(key, set()) - {value}) for key, value in pairs]]
    if copied.empty:
        return
    message = (
        f"{len(copied)} of {len(queries)} queries of split {split!r} have the same files in the gallery"
        f"{_under_another(junk)} ({name_first(copied)}), so that every model finds them; remove the copies"
    )
    is_certain = len(copied) == len(queries) and split != "val"
    (findings.error if is_certain else findings.warn)("query_in_gallery", message, copied)


def _under_another(junk: JunkRule) -> str:
    return "" if junk == "none" else f" under another {junk}"
