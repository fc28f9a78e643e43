"""What was made from what: the tables of a data set as a graph, and as a tree to read."""

from pathlib import Path
from typing import Any

from data_catalog.tables.table import list_tables

_SHORT = 12


def trace(catalog: str | Path, dataset: str) -> list[dict[str, Any]]:
    """Every table of a data set with what it was made from, inputs before what was made of them.

    Returns:
        Of each table `name` (kind and key), `table`, `key`, `digest`, `rows`, `settings`, `time`, and
        `inputs`: name to `digest` and `made_by`, the `name` of the table that has it, or None where it is a
        file, or a table that is gone.
    """
    tables = list_tables(catalog, dataset)
    made_by: dict[str, str] = {}
    for table in tables:
        # Of two tables of the same content the older one stands for both.
        made_by.setdefault(table.digest, f"{table.kind.value}/{table.manifest.key}")
    return [
        {
            "name": f"{table.kind.value}/{table.manifest.key}",
            "table": table.kind.value,
            "key": table.manifest.key,
            "digest": table.digest,
            "rows": len(table),
            "settings": table.manifest.settings,
            "time": table.manifest.created["time"],
            "inputs": {
                name: {"digest": digest, "made_by": made_by.get(digest)}
                for name, digest in table.manifest.inputs.items()
            },
        }
        for table in tables
    ]


def draw_tree(nodes: list[dict[str, Any]]) -> list[str]:
    """The lines of a tree: under each table what was made of it.

    A table of several inputs stands under the one that was made last, and names the others.

    Args:
        nodes: What `trace` gives.
    """
    order = {node["name"]: number for number, node in enumerate(nodes)}
    children: dict[str | None, list[dict[str, Any]]] = {}
    for node in nodes:
        parents = [entry["made_by"] for entry in node["inputs"].values() if entry["made_by"] in order]
        parent = max(parents, key=order.__getitem__) if parents else None
        children.setdefault(parent, []).append(node | {"parent": parent})

    lines: list[str] = []

    def draw(node: dict[str, Any], before: str, branch: str) -> None:
        lines.append(f"{before}{branch}{_describe(node)}")
        below = before + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        of_node = children.get(node["name"], [])
        for number, child in enumerate(of_node):
            draw(child, below, "└─ " if number == len(of_node) - 1 else "├─ ")

    for root in children.get(None, []):
        draw(root, "", "")
    return lines


def _describe(node: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {_short(value)}" for name, value in node["settings"].items())
    others = [
        f"{name} {entry['digest'][:_SHORT]}{'' if entry['made_by'] or name not in _TABLES else ' (gone)'}"
        for name, entry in node["inputs"].items()
        if entry["made_by"] is None or entry["made_by"] != node["parent"]
    ]
    return (
        f"{node['table']} {node['digest'][:_SHORT]}  {node['rows']} rows"
        + (f"  ({settings})" if settings else "")
        + (f"  also from {', '.join(others)}" if others else "")
    )


_TABLES = frozenset({"samples", "masks", "captions", "text_features"})


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, int) for part in value):
        return "x".join(map(str, value))
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
