"""Results of commands as text for a person."""

from collections.abc import Mapping
from typing import Any

from data_catalog.checks.data_checks import NAMED


def print_result(result: Mapping[str, Any], indent: str = "") -> None:
    """Print a result, one name and value a line, what lies within indented."""
    width = max((len(str(name)) for name in result), default=0)
    for name, value in result.items():
        if isinstance(value, Mapping) and "digest" in value:
            print(
                f"{indent}{name:<{width}}  {value['digest'][:12]}  {value['rows']:>8} rows  {value['path']}"
            )
        elif isinstance(value, Mapping) and value:
            print(f"{indent}{name}")
            print_result(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            print(f"{indent}{name}")
            for entry in value:
                _print_entry(entry, indent + "  ")
        else:
            text = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{indent}{name:<{width}}  {text if text not in ({}, []) else '-'}")


def print_findings(result: Mapping[str, Any]) -> None:
    """Print the `errors` and `warnings` of a result, one a line, or that there are none."""
    for kind in ("errors", "warnings"):
        for finding in result[kind]:
            print(f"{kind.removesuffix('s'):<8}{finding['check']}: {finding['message']}")
    is_short = any(
        len(finding["rows"]) > NAMED for kind in ("errors", "warnings") for finding in result[kind]
    )
    print(
        f"{len(result['errors'])} errors, {len(result['warnings'])} warnings"
        + ("; --json names every row" if is_short else "")
    )


def _print_entry(entry: Mapping[str, Any], indent: str) -> None:
    if "digest" in entry:
        made_from = ", ".join(f"{name} {digest[:12]}" for name, digest in entry["inputs"].items()) or "files"
        print(
            f"{indent}{entry['table']:<14}{entry['digest'][:12]}  {entry['rows']:>8} rows  from {made_from}"
        )
    else:
        print(indent + "  ".join(str(value) for value in entry.values()))
