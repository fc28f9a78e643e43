"""The numbers of the paper's Tables 1 to 5, and later ones of others, each with its source."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from data_catalog.records import Record, describe_invalid
from experiments.run.run_result import MetricName

PUBLISHED = Path(__file__).with_suffix(".yaml")

Percent = Annotated[float, Field(ge=0, le=100)]


class PublishedError(ValueError):
    """A number that the paper does not print, or a file that is not as expected."""


class PublishedRow(Record):
    """One row of a table.

    Attributes:
        name: As printed.
        index: Letter of an ablation's row; None in a comparison of methods.
        kind: Backbone of a method of Tables 1 and 2; None in an ablation.
        cites: The paper of a method; None in an ablation.
        source: What the numbers were read in; None for the paper.
        at: Where it is; None for the paper.
        to_check: Whether they, or what is missing of them, must still be read at the source.
        note: What its numbers are not comparable in.
        values: Data set to metric to percent; None where the paper prints a dash.
    """

    name: str = Field(min_length=1)
    index: str | None = None
    kind: Literal["CNN", "ViT", "CLIP"] | None = None
    cites: str | None = None
    source: str | None = None
    at: str | None = None
    to_check: bool = False
    note: str | None = None
    values: dict[str, dict[MetricName, Percent | None]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_numbers(self) -> "PublishedRow":
        if not self.values and not self.to_check:
            raise ValueError(f"row {self.name} has no values; only one that is to be checked may lack them")
        return self

    def fractions(self, dataset: str) -> dict[MetricName, float]:
        """What the paper prints for a data set, as fractions; empty where it prints nothing."""
        printed = self.values.get(dataset, {})
        return {name: round(percent / 100, 6) for name, percent in printed.items() if percent is not None}


class PublishedTable(Record):
    """One table or figure.

    Attributes:
        source: Its name in the paper.
        title: Its caption.
        claims: Statements of the paper about it, where it prints no numbers.
        rows: From top to bottom.
    """

    source: str = Field(min_length=1)
    title: str
    claims: tuple[str, ...] = ()
    rows: tuple[PublishedRow, ...]

    @model_validator(mode="after")
    def _check_names(self) -> "PublishedTable":
        keys = [key for row in self.rows for key in (row.name, row.index) if key is not None]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"rows: the names {', '.join(twice)} stand for more than one row")
        return self

    def row(self, key: str) -> PublishedRow:
        """The row of this index (`D`) or name (`STMI`).

        Raises:
            PublishedError: There is none.
        """
        for row in self.rows:
            if key in (row.index, row.name):
                return row
        known = ", ".join(row.index or row.name for row in self.rows) or "none"
        raise PublishedError(f"row {key!r} is not in {self.source} of the paper; its rows are {known}")

    def row_source(self, key: str) -> str:
        """The source of a row: `Table 3, row D`.

        Raises:
            PublishedError: There is no such row.
        """
        row = self.row(key)
        return f"{self.source}, row {row.index or row.name}"


class _File(Record):
    paper: str
    tables: dict[str, PublishedTable]


def published(table: str) -> PublishedTable:
    """The numbers of `table1` to `table5` or of `later`, or the claims about `figure5`.

    Raises:
        PublishedError: There is no such table.
    """
    tables = load_published(PUBLISHED).tables
    if table not in tables:
        raise PublishedError(f"table {table!r} is not known; use one of {', '.join(tables)}")
    return tables[table]


class PublishedResult(Record):
    """What the paper prints for STMI on one data set."""

    source: str
    """Such as `Table 1, row STMI`."""
    metrics: dict[MetricName, float]
    """Fractions."""

    def describe(self) -> str:
        """The numbers in percent, in one sentence."""
        metrics = ", ".join(
            f"{name.replace('rank', 'rank ')} {100 * value:.1f}" for name, value in self.metrics.items()
        )
        return f"{self.source} of the paper, as printed and not measured here: {metrics}"


class PublishedMethod(Record):
    """What was published of a method on one data set; nothing of it was measured here."""

    name: str
    kind: str | None
    """Its backbone; None where the source is silent."""
    source: str
    at: str | None
    """Where the source is; None for the paper."""
    to_check: bool
    """Whether the numbers were copied from a copy, and must still be read at the source."""
    note: str | None = None
    """What its numbers are not comparable in."""
    metrics: dict[MetricName, float]
    """Fractions."""


def published_methods(dataset: str) -> tuple[PublishedMethod, ...]:
    """Methods with a published mAP on a data set, the highest first; empty for another data set."""
    methods = [
        PublishedMethod(
            name=row.name,
            kind=row.kind,
            source=row.source or f"{table.source} of the paper",
            at=row.at,
            to_check=row.to_check,
            note=row.note,
            metrics=metrics,
        )
        for table in map(published, ("table1", "table2", "later"))
        for row in table.rows
        if "mAP" in (metrics := row.fractions(dataset))
    ]
    return tuple(sorted(methods, key=lambda method: -method.metrics["mAP"]))


def find_stmi_result(dataset: str) -> PublishedResult | None:
    """What Tables 1 and 2 of the paper print for STMI on a data set; None for another data set."""
    for table in (published("table1"), published("table2")):
        if metrics := table.row("STMI").fractions(dataset):
            return PublishedResult(source=table.row_source("STMI"), metrics=metrics)
    return None


@cache
def load_published(path: Path) -> _File:
    """The numbers of a file.

    Raises:
        PublishedError: It is not YAML, or a field is missing, unknown or out of range.
    """
    try:
        return _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise PublishedError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise PublishedError(
            f"{path}: {describe_invalid(error, 'the file')}, got {error.errors()[0]['input']!r}"
        ) from error
