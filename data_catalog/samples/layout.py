"""The layout of the files that a samples table was made from."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_catalog.errors import CatalogError
from data_catalog.formats import FORMATS, Listing, SourceFormat
from data_catalog.tables.table import Table

_FACTS = tuple(fact.name for fact in fields(SourceFormat) if fact.name != "list_samples")


def layout_facts(source_format: SourceFormat) -> dict[str, Any]:
    """What a samples table holds of a layout of a user's own."""
    facts = {fact: getattr(source_format, fact) for fact in _FACTS}
    return {fact: dict(value) if isinstance(value, Mapping) else value for fact, value in facts.items()}


def layout_of(samples: Table) -> SourceFormat:
    """Where the masks and captions of a data set lie.

    The table may come from somebody else, so the module that it names is not imported: what it holds of the
    layout is enough.

    Raises:
        CatalogError: Another version made the table, and it lacks that.
    """
    name = samples.manifest.settings["format"]
    if name in FORMATS:
        return FORMATS[name]
    facts: Mapping[str, Any] | None = samples.manifest.created.get("layout")
    if facts is None or facts.keys() != set(_FACTS):
        raise CatalogError(
            f"table {samples.path} does not say all of its layout {name}: another version made it; "
            "ingest the data set again under another name"
        )

    def list_samples(source: Path) -> Listing:
        raise CatalogError(
            f"{source}: only `ingest` reads what is in the user's own layout {name}; name a folder instead"
        )

    return SourceFormat(list_samples=list_samples, **facts)
