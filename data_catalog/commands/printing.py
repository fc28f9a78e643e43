"""Results of commands as text for a person."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from data_catalog.checks.data_checks import CheckReport
from data_catalog.errors import NAMED


def print_result(result: BaseModel | Mapping[str, Any], indent: str = "") -> None:
    """Print a result, one name and value per line, nested values indented."""
    values = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
    width = max((len(str(name)) for name in values), default=0)
    for name, value in values.items():
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
                print(f"{indent}  " + "  ".join(map(str, entry.values())))
        else:
            text = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{indent}{name:<{width}}  {text if text not in ({}, [], None) else '-'}")


def print_findings(report: CheckReport) -> None:
    """Print errors and warnings, one per line, and how many there are."""
    for kind, findings in (("error", report.errors), ("warning", report.warnings)):
        for finding in findings:
            print(f"{kind:<8}{finding.check}: {finding.message}")
    is_short = any(len(finding.rows) > NAMED for finding in (*report.errors, *report.warnings))
    print(
        f"{len(report.errors)} errors, {len(report.warnings)} warnings"
        + ("; --json names every row" if is_short else "")
    )
