"""What each table of a data set was made from, as records and as a tree."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_catalog.records import Record
from data_catalog.tables.table import list_tables

_SHORT = 12
_TABLES = frozenset({"samples", "masks", "captions", "text_features"})


class Input(Record):
    """What a table was made from."""

    digest: str
    made_by: str | None
    """`name` of the table with this digest; None for a file, or a table that no longer exists."""


class TableOrigin(Record):
    """A table and what it was made from."""

    name: str
    """Kind and key: `samples/0123456789abcdef`."""
    table: str
    """Its kind."""
    key: str
    digest: str
    rows: int
    settings: dict[str, Any]
    time: str
    """When it was made, ISO 8601."""
    inputs: dict[str, Input]


def trace(catalog: str | Path, dataset: str) -> list[TableOrigin]:
    """Every table of a data set with what it was made from, inputs before what was made of them."""
    tables = list_tables(catalog, dataset)
    made_by: dict[str, str] = {}
    for table in tables:
        # Of two tables with the same content the one that was asked for earlier counts.
        made_by.setdefault(table.digest, f"{table.kind.value}/{table.manifest.key}")
    return [
        TableOrigin(
            name=f"{table.kind.value}/{table.manifest.key}",
            table=table.kind.value,
            key=table.manifest.key,
            digest=table.digest,
            rows=len(table),
            settings=table.manifest.settings,
            time=table.manifest.created["time"],
            inputs={
                name: Input(digest=digest, made_by=made_by.get(digest))
                for name, digest in table.manifest.inputs.items()
            },
        )
        for table in tables
    ]


def draw_tree(origins: Sequence[TableOrigin]) -> list[str]:
    """The lines of a tree: under each table what was made from it.

    A table with several inputs stands under the one that was made last, and names the others.

    Args:
        origins: What `trace` gives.
    """
    order = {origin.name: number for number, origin in enumerate(origins)}
    children: dict[str | None, list[TableOrigin]] = {}
    for origin in origins:
        children.setdefault(_parent(origin, order), []).append(origin)
    lines: list[str] = []

    def draw(origin: TableOrigin, parent: str | None, before: str, branch: str) -> None:
        lines.append(f"{before}{branch}{_describe(origin, parent)}")
        below = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        own = children.get(origin.name, [])
        for number, child in enumerate(own):
            draw(child, origin.name, below, "└─ " if number == len(own) - 1 else "├─ ")

    for root in children.get(None, []):
        draw(root, None, "", "")
    return lines


def _parent(origin: TableOrigin, order: dict[str, int]) -> str | None:
    made_by = [entry.made_by for entry in origin.inputs.values() if entry.made_by in order]
    return max(made_by, key=lambda name: order[str(name)], default=None)


def _describe(origin: TableOrigin, parent: str | None) -> str:
    settings = ", ".join(f"{name} {_short(value)}" for name, value in origin.settings.items())
    # Imported captions are made from files, whose digest has this name too.
    tables = _TABLES - {origin.table}
    others = [
        f"{name} {entry.digest[:_SHORT]}{' (gone)' if entry.made_by is None and name in tables else ''}"
        for name, entry in origin.inputs.items()
        if entry.made_by is None or entry.made_by != parent
    ]
    return (
        f"{origin.table} {origin.digest[:_SHORT]}  {origin.rows} rows"
        + (f"  ({settings})" if settings else "")
        + (f"  also from {', '.join(others)}" if others else "")
    )


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, int) for part in value):
        return "x".join(map(str, value))
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
