"""The newest tables of a data set, those asked for last: its samples, what was made of them, and its card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_catalog.cards import Card, card_names, load_card
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table, list_tables, take_newest


@dataclass(frozen=True)
class NewestTables:
    """The tables that a run would use.

    Attributes:
        samples: The samples.
        masks: Newest masks of these samples; this and the next two are None if there are none.
        captions: Newest captions of these samples.
        text_features: Newest text features of these samples.
        views: Newest view of each split of these samples.
    """

    samples: Table
    masks: Table | None
    captions: Table | None
    text_features: Table | None
    views: Mapping[str, Table]

    @property
    def named(self) -> dict[str, Table]:
        """Every table that exists, by name; a view is named `view <split>`."""
        tables = {
            "samples": self.samples,
            "masks": self.masks,
            "captions": self.captions,
            "text_features": self.text_features,
            **{f"view {split}": table for split, table in self.views.items()},
        }
        return {name: table for name, table in tables.items() if table is not None}


def find_newest_tables(catalog: str | Path, dataset: str, samples_key: str | None = None) -> NewestTables:
    """Find the newest tables of a data set that were made of the same samples.

    Args:
        catalog: Root of the catalog, folder or URI.
        dataset: Name of the data set.
        samples_key: Key of the samples table; None for the newest.

    Raises:
        CatalogError: If there is no samples table.
    """
    samples = find_table(catalog, dataset, TableKind.SAMPLES, key=samples_key)
    made: dict[TableKind, list[Table]] = {}
    made_views: dict[str, list[Table]] = {}
    for table in list_tables(catalog, dataset):
        manifest = table.manifest
        current = manifest.schema_version == table.kind.schema_version
        if current and manifest.inputs.get("samples") == samples.digest:
            if table.kind is TableKind.VIEW:
                made_views.setdefault(str(manifest.settings["split"]), []).append(table)
            else:
                made.setdefault(table.kind, []).append(table)
    newest = {kind: take_newest(tables) for kind, tables in made.items()}
    views = {split: take_newest(tables) for split, tables in made_views.items()}
    return NewestTables(
        samples=samples,
        masks=newest.get(TableKind.MASKS),
        captions=newest.get(TableKind.CAPTIONS),
        text_features=newest.get(TableKind.TEXT_FEATURES),
        views=dict(sorted(views.items())),
    )


def find_card(samples: Table) -> Card | None:
    """The card of a data set, by its name or by the layout of its folder; None where there is none."""
    for name in (samples.manifest.dataset, samples.manifest.created.get("card")):
        if name in card_names():
            return load_card(name)
    return None
