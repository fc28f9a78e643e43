"""What commands printed with `--json` before their results were models; keys and values are promised."""

import json
from pathlib import Path
from typing import Any

from data_catalog.records import Record

FOLDER = Path(__file__).parent


def check(name: str, record: type[Record]) -> None:
    """Fail unless a model accepts a stored sample and its dump has all that the sample has.

    Args:
        name: Of the file in this folder, without its ending.
        record: The model.
    """
    sample = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    dumped = record.model_validate(sample).model_dump(mode="json")
    assert missing(sample, dumped, name) == []


def missing(sample: Any, dumped: Any, path: str = "") -> list[str]:
    """Paths of what a sample has and a dump lacks or changes; a dump may have more keys.

    Args:
        sample: Part of a sample.
        dumped: The same part of what is printed now.
        path: Where it stands in the sample.
    """
    if isinstance(sample, dict) and isinstance(dumped, dict):
        lost = [f"{path}.{key}" for key in sample if key not in dumped]
        common = [key for key in sample if key in dumped]
        return lost + [p for key in common for p in missing(sample[key], dumped[key], f"{path}.{key}")]
    if isinstance(sample, list) and isinstance(dumped, list) and len(sample) == len(dumped):
        pairs = zip(sample, dumped, strict=True)
        return [p for number, (a, b) in enumerate(pairs) for p in missing(a, b, f"{path}[{number}]")]
    return [] if sample == dumped else [path]
