"""A data set at a glance: its card, what was found, what differs, and what was made of it."""

from pathlib import Path
from typing import Any

import numpy as np

from data_catalog.cards import Card
from data_catalog.checks.artifacts import Artifacts, card_of, find_artifacts
from data_catalog.checks.data_checks import CheckSettings, run_checks
from data_catalog.tables.table import Table

_COUNTED = ("samples", "identities", "queries", "gallery")


def describe(catalog: str | Path, dataset: str, samples_key: str | None = None) -> dict[str, Any]:
    """What there is to tell of a data set, as JSON values.

    Args:
        catalog: Root of the catalog, folder or URI.
        dataset: Name of the data set.
        samples_key: Key of the samples table, where it is not the newest that is wanted.

    Returns:
        `card` (None without one); `found`: split to `samples`, `identities`, `cameras`, `queries` and
        `gallery`, each a number; `differences`: what the card says otherwise (`split`, `what`, `card`,
        `found`); `artifacts`: name to `digest`, `coverage` (share of the samples, 0 to 1), `rows`, `key` and
        `path`; `warnings` and `errors`: those of the checks that need no image, each with `check`, `message`
        and `rows`.

    Raises:
        CatalogError: If there is no samples table.
    """
    artifacts = find_artifacts(catalog, dataset, samples_key)
    card = card_of(artifacts.samples)
    found = count(artifacts.samples)
    report = run_checks(artifacts, CheckSettings(images=False))
    warnings = [vars(finding) for finding in report.warnings]
    if quarantined := artifacts.samples.statistics["quarantined"]:
        first = quarantined[0]
        warnings.append(
            {
                "check": "quarantined",
                "message": f"{len(quarantined)} files were left out by ingest "
                f"(first: {first['file']} {first['reason']})",
                "rows": [],
            }
        )
    return {
        "card": None if card is None else card.model_dump(mode="json"),
        "found": found,
        "differences": [] if card is None else differences(card, artifacts.samples, found),
        "artifacts": _artifacts(artifacts, found),
        "warnings": warnings,
        "errors": [vars(finding) for finding in report.errors],
    }


def count(samples: Table) -> dict[str, dict[str, int]]:
    """Split to how many samples, identities, cameras, queries and gallery samples it holds."""
    rows = samples.read(["split", "identity", "camera_id", "is_query", "is_gallery"])
    split = np.array(rows["split"].to_pylist())
    columns = {name: rows[name].to_numpy() for name in rows.column_names[1:]}
    found = {}
    for name in map(str, np.unique(split)):
        of_split = split == name
        found[name] = {
            "samples": int(of_split.sum()),
            "identities": len(np.unique(columns["identity"][of_split])),
            "cameras": len(np.unique(columns["camera_id"][of_split])),
            "queries": int(columns["is_query"][of_split].sum()),
            "gallery": int(columns["is_gallery"][of_split].sum()),
        }
    return found


def differences(card: Card, samples: Table, found: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Where a card and what was found disagree; what the card does not say is no difference."""
    different: list[dict[str, Any]] = []

    def compare(split: str, what: str, expected: Any, actual: Any) -> None:
        if expected is not None and expected != actual:
            different.append({"split": split, "what": what, "card": expected, "found": actual})

    source_format = samples.manifest.settings["format"]
    compare("", "format", card.format, source_format)
    size = samples.manifest.settings["size"]
    compare("", "image_size", list(card.image_size), size if size == "any" else list(size))
    compare("", "cameras", card.cameras, len(samples.statistics["cameras"]))
    for split, counts in card.counts.items():
        for what in _COUNTED:
            compare(split, what, getattr(counts, what), found.get(split, {}).get(what, 0))
    if card.counts:
        for split in found.keys() - card.counts.keys():
            different.append({"split": split, "what": "samples", "card": 0, "found": found[split]["samples"]})
    return different


def _artifacts(artifacts: Artifacts, found: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    described = {}
    for name, table in artifacts.named.items():
        split = table.manifest.settings.get("split")
        of_split = name.startswith("view ")
        wanted = found[str(split)]["samples"] if of_split else len(artifacts.samples)
        described[name] = {
            "digest": table.digest,
            "coverage": round(_useful_rows(name, table) / wanted, 6) if wanted else 1.0,
            "rows": len(table),
            "key": table.manifest.key,
            "path": table.path,
        }
    return described


def _useful_rows(name: str, table: Table) -> int:
    """Rows that hold something: no placeholder of a missing mask, no empty caption."""
    if name == "masks":
        return sum(source != "missing" for source in table.read(["source"])["source"].to_pylist())
    if name == "captions":
        return sum(bool(caption.strip()) for caption in table.read(["caption"])["caption"].to_pylist())
    return len(table)
