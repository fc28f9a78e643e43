"""The result of an ablation: the measured rows of its tables, and which differences are real."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field

from data_catalog.records import Record
from data_catalog.storage.folders import Folder
from experiments.experiment_config import SettingName
from experiments.run.run_result import MetricName
from experiments.studies.significance import summarise
from experiments.studies.study_result import StudyResult
from experiments.studies.verdicts import Word

EPOCHS = {
    "last": "the last epoch",
    "validation": "the epoch chosen on validation identities",
    "best_on_test": "the epoch best on test, which flatters",
}
"""The choices of epoch that every run measures, in words."""
Interval = tuple[float, float]


class SeedSpread(Record):
    """A number over the seeds of a row; metrics are fractions; None without a finished run."""

    mean: float | None = None
    std: float | None = None
    """None for one seed."""
    interval: Interval | None = None
    """95 % over seeds."""
    values: dict[int, float] = Field(default_factory=dict)
    """By seed."""

    @classmethod
    def of(cls, values: Mapping[int, float], **others: Any) -> Self:
        """The spread of a metric's values by seed, beside the other fields of the class."""
        if not values:
            return cls(**others)
        ordered = dict(sorted(values.items()))
        summary = summarise(list(ordered.values()))
        return cls(mean=summary.mean, std=summary.std, interval=summary.interval, values=ordered, **others)


class RowMetric(SeedSpread):
    """A metric of a row, and what the paper prints for it."""

    paper: float | None
    """None where the paper prints nothing."""


class ComparedMetric(RowMetric):
    """A metric of a row, and how much it differs from that of the row it is compared with."""

    against: str | None
    """Name of that row; None for a row that is compared with none."""
    difference: float | None = None
    """Mean over the seeds of both rows."""
    difference_interval: Interval | None = None
    """95 % over seeds."""
    query_interval: Interval | None = None
    """95 % over other queries."""
    p_value: float | None = None
    """The larger one of both tests."""
    p_adjusted: float | None = None
    """Corrected for the number of differences that the table shows (Holm)."""
    real: bool | None = None
    """None where that cannot be said, as with one seed."""
    verdict: Word | None = None
    """None for the first row of a table, a row without a finished run, and in studies of older versions."""
    seeds_needed: int | None = None
    """Estimated number of seeds that would decide; None where it is decided or cannot be said."""
    advice: str = ""
    """What would decide it; empty where it is decided."""
    paper_difference: float | None

    @property
    def shown_verdict(self) -> str:
        """The verdict in words; empty without a difference. What older versions left open is undecided."""
        if self.difference is None:
            return ""
        return self.verdict or ("real" if self.real else "undecided")


class EpochSpread(SeedSpread):
    """The mAP of a row at a choice of epoch."""

    epoch: dict[int, int] = Field(default_factory=dict)
    """By seed. Empty in studies of older versions."""


class TableRow(Record):
    """A measured row of a table, or a point of a figure."""

    table: str
    """Key of the table."""
    index: str | None
    """Letter of the paper's row; None where the paper has no such row."""
    name: str
    x: int | float | None
    """Position on the axis, in a figure."""
    config: dict[SettingName, Any]
    """Settings that differ from the recipe, by full name."""
    feature: str
    """The retrieval feature that the row shows."""
    seeds: tuple[int, ...]
    """Seeds of the finished runs."""
    runs: dict[int, str]
    """Seed to the name of the finished run."""
    mean_average_precision: ComparedMetric = Field(alias="mAP")
    rank1: RowMetric
    rank5: RowMetric
    rank10: RowMetric
    epochs: dict[str, EpochSpread] | None = None
    """The mAP of each choice of epoch in `EPOCHS`, as the shown feature chooses it. None in studies of older
    versions."""
    hyperedge_size: SeedSpread | None = None
    """Mean number of nodes in a hyperedge on the test identities. None without a hypergraph, for a row that
    shows another feature of other rows' runs, and in studies of older versions."""

    @property
    def label(self) -> str:
        """Letter and name."""
        return " ".join(filter(None, [self.index, self.name]))

    def metric(self, name: MetricName) -> RowMetric:
        """The metric with this name in JSON."""
        return self.mean_average_precision if name == "mAP" else getattr(self, name)


class AblationResult(StudyResult):
    """The result of an ablation."""

    kind: Literal["ablation"] = "ablation"
    tables: tuple[str, ...]
    """Keys of the tables and figures."""
    titles: dict[str, str]
    """By key."""
    seeds: tuple[int, ...]
    unit: Literal["fraction"] = "fraction"
    epoch: str
    """The choice of epoch that the recipe reports."""
    rows: tuple[TableRow, ...]
    """The rows of all tables."""
    notes: tuple[str, ...] = ()
    full: dict[str, str] = Field(default_factory=dict)
    """Name of the full model's row by key of the table. Empty in studies of older versions."""
    added: tuple[str, ...] = ()
    """Names of the rows from the command line."""
    table: str
    """Path or URI of the first table as Markdown; in the stored result, its name in the study's folder."""
    wrong: dict[str, str]
    """Run to the reason why it could not be finished."""

    def located(self, folder: Folder) -> Self:
        """As in `StudyResult`."""
        return super().located(folder).model_copy(update={"table": folder.file(self.table)})

    @property
    def is_complete(self) -> bool:
        """Whether every run is finished."""
        return not self.wrong

    def find_rows(self, table: str) -> list[TableRow]:
        """The rows of one table, from top to bottom."""
        return [row for row in self.rows if row.table == table]

    def find_full(self, table: str) -> str:
        """Name of the row of a table that is the full model."""
        # In studies of older versions, the first row with the fewest changes of the recipe.
        return self.full.get(table) or min(self.find_rows(table), key=lambda row: len(row.config)).name
