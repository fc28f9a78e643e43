"""Rows that the command line adds to the paper's tables, or shows alone beside the full model."""

import re
from collections.abc import Sequence
from dataclasses import replace

from experiments.experiment_config import ConfigError, full_name
from experiments.studies.ablation.rows import Ablation, Row

SYNTAX = "NAME: setting=value setting=value [against ROW]"
FULL_MODEL = "full model"
ADDED_TABLE = "rows"
"""Key of the table that the added rows have for themselves."""
_NAME = re.compile(r"[\w .,+=()/-]+")
_SHARED = ("recipe", "seed", "data", "model.image", "model.clip", "train.workers")
"""Settings that all runs of a study have in common: they read the same tables."""


def parse_row(text: str) -> Row:
    """A row as `--row` names it: `K = 2 without SFM: model.sfm=off model.str.tokens=2 against SFM + STR`.

    Returns:
        The row; without `against` it is compared with the full model of each table that it is added to.

    Raises:
        ConfigError: It is not written as in `SYNTAX`, or it changes what all rows have in common.
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    changed, *others = re.split(r"(?:^|\s)against\s", rest, maxsplit=1)
    settings = tuple(changed.split())
    if not colon or not _NAME.fullmatch(name) or not settings or not all(map(str.strip, others)):
        raise ConfigError(
            f"--row {text!r}: expected '{SYNTAX}', a name of letters, digits, spaces and . , + = ( ) / -, "
            "and at least one setting, for example 'no SFM: model.sfm=off'"
        )
    for setting in settings:
        for shared in _SHARED:
            if f"{full_name(setting).partition('=')[0]}.".startswith(f"{shared}."):
                raise ConfigError(
                    f"--row {name!r}: {setting}: {shared} is the same in all rows of a study; change it for "
                    "all (--set, --seeds, --workers), or in a study of its own"
                )
    return Row(name, settings, against=others[0].strip() if others else None)


def add_rows(ablations: Sequence[Ablation], rows: Sequence[Row]) -> list[Ablation]:
    """The tables with added rows; figures stay as they are.

    Args:
        ablations: What was asked for.
        rows: As `parse_row` gives them. Where no table was asked for, they have one of their own, under the
            full model.
    """
    asked = list(ablations)
    if rows and all(ablation.is_figure for ablation in asked):
        full = Row(FULL_MODEL, against=None)
        own = Ablation(ADDED_TABLE, "Added rows", (full,), full=FULL_MODEL, text_rows=False)
        asked.append(own)
    return [ablation if ablation.is_figure else _with_rows(ablation, rows) for ablation in asked]


def _with_rows(ablation: Ablation, rows: Sequence[Row]) -> Ablation:
    # A row of the table may be named by its letter.
    letters = {row.index: row.name for row in ablation.rows if row.index is not None}
    against = [
        ablation.full if row.against is None else letters.get(row.against, row.against) for row in rows
    ]
    return replace(
        ablation, added=tuple(replace(row, against=name) for row, name in zip(rows, against, strict=True))
    )
