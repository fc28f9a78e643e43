"""The conditions of an ablation: every combination of the values of one or two settings."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

from data_catalog.records import Record
from experiments.experiment_config import ConfigError, full_name
from experiments.studies.ablation.ablation_result import AblationResult

SYNTAX = "setting=value,value,..."

Condition = Mapping[str, str]
"""Setting to value, as `--set` takes them."""


class GridCell(Record):
    """The study of one condition."""

    condition: dict[str, str]
    """Setting to value, as `--set` takes them."""
    result: AblationResult


class AblationGrid(Record):
    """An ablation under several conditions."""

    kind: Literal["ablation grid"] = "ablation grid"
    name: str
    over: dict[str, tuple[str, ...]]
    """Setting to its values."""
    cells: tuple[GridCell, ...]
    files: dict[str, str]
    """Name to path or URI, of tables and figures."""

    @property
    def is_complete(self) -> bool:
        """Whether every run of every condition is finished."""
        return all(cell.result.is_complete for cell in self.cells)


def parse_over(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Settings and their values, as `--over` names them: `data.synthetic.clutter=0,0.5,1`.

    Raises:
        ConfigError: One is not written so, or there are more than two.
    """
    over: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        # Commas in brackets belong to a value.
        values = tuple(value.strip() for value in re.split(r",(?![^\[{]*[\]}])", rest))
        setting = full_name(name.strip())
        if not equals or not all(values) or len(set(values)) < max(2, len(values)) or setting in over:
            raise ConfigError(
                f"--over {text}: expected '{SYNTAX}', a setting that is named once, with two or more "
                "different values, for example data.synthetic.clutter=0,0.5,1"
            )
        over[setting] = values
    if len(over) > 2:
        raise ConfigError(
            f"--over names {len(over)} settings ({', '.join(over)}); a picture shows two at most"
        )
    return over


def list_conditions(over: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of the values, the last setting running fastest."""
    return [dict(zip(over, values, strict=True)) for values in product(*over.values())]


def describe(condition: Condition) -> str:
    """A condition in words: the last part of each setting's name, and its value."""
    return ", ".join(f"{name.rpartition('.')[2]} = {value}" for name, value in condition.items())
