"""Summary of a data set: its card, what was found, what differs, and the tables made from it."""

from pathlib import Path

from data_catalog.cards import Card
from data_catalog.checks.card_differences import Difference, SplitCounts, count, differences
from data_catalog.checks.data_checks import CheckSettings, run_checks
from data_catalog.checks.findings import CheckReport, Finding
from data_catalog.checks.newest_tables import NewestTables, find_card, find_newest_tables
from data_catalog.records import Record
from data_catalog.tables.table import Table


class Artifact(Record):
    """A table that was made from the samples."""

    digest: str
    coverage: float
    """Share of the samples that have a row with content, 0 to 1."""
    rows: int
    key: str
    path: str


class Summary(CheckReport):
    """Summary of a data set."""

    card: Card | None
    found: dict[str, SplitCounts]
    """What each split holds."""
    differences: tuple[Difference, ...]
    artifacts: dict[str, Artifact]
    """The tables by name; the name of a view is `view <split>`."""


def describe(catalog: str | Path, dataset: str, samples_key: str | None = None) -> Summary:
    """Summarise a data set; the checks are those that need no image.

    Args:
        catalog: Root of the catalog, folder or URI.
        dataset: Name of the data set.
        samples_key: Key of the samples table; None for the newest.

    Raises:
        CatalogError: If there is no samples table.
    """
    artifacts = find_newest_tables(catalog, dataset, samples_key)
    card = find_card(artifacts.samples)
    found = count(artifacts.samples)
    report = run_checks(artifacts, CheckSettings(images=False))
    warnings = list(report.warnings)
    if quarantined := artifacts.samples.statistics["quarantined"]:
        first = quarantined[0]
        message = (
            f"{len(quarantined)} files were left out by ingest (first: {first['file']} {first['reason']})"
        )
        warnings.append(Finding(check="quarantined", message=message))
    return Summary(
        card=card,
        found=found,
        differences=() if card is None else tuple(differences(card, artifacts.samples, found)),
        artifacts=_artifacts(artifacts, found),
        warnings=tuple(warnings),
        errors=report.errors,
    )


def _artifacts(artifacts: NewestTables, found: dict[str, SplitCounts]) -> dict[str, Artifact]:
    described = {}
    for name, table in artifacts.named.items():
        split = table.manifest.settings.get("split")
        wanted = found[str(split)].samples if name.startswith("view ") else len(artifacts.samples)
        described[name] = Artifact(
            digest=table.digest,
            coverage=round(_useful_rows(name, table) / wanted, 6) if wanted else 1.0,
            rows=len(table),
            key=table.manifest.key,
            path=table.path,
        )
    return described


def _useful_rows(name: str, table: Table) -> int:
    """Number of rows with content: no placeholder of a missing mask, no empty caption."""
    if name == "masks":
        return sum(source != "missing" for source in table.read(["source"])["source"].to_pylist())
    if name == "captions":
        return sum(bool(caption.strip()) for caption in table.read(["caption"])["caption"].to_pylist())
    return len(table)
