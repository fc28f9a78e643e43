"""An ablation's rows: spread over seeds, the paper's numbers beside them, and which differences are real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyarrow import compute, parquet

from experiments.run.conclusion import choices_of
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import EpochChoices, MetricName, ReportedEpoch
from experiments.studies.ablation.ablation_result import (
    ComparedMetric,
    EpochSpread,
    RowMetric,
    TableRow,
)
from experiments.studies.ablation.rows import Ablation, Row
from experiments.studies.published import published
from experiments.studies.significance import (
    Difference,
    Verdict,
    bootstrap_over_queries,
    judge,
    paired_over_seeds,
)

EPOCHS = {
    "last": "the last epoch",
    "validation": "the epoch chosen on validation identities",
    "best_on_test": "the epoch best on test, which flatters",
}
"""The choices of epoch that every run measures, in words."""


@dataclass(frozen=True)
class RowRuns:
    """The finished runs of a row, and their numbers.

    Attributes:
        row: Which.
        feature: The retrieval feature that it shows.
        runs: Seed to the finished run.
        changed: Settings that differ from the recipe, by flat name.
    """

    row: Row
    feature: str
    runs: Mapping[int, RunFolder]
    changed: Mapping[str, Any]

    def values(self, metric: MetricName) -> dict[int, float]:
        """Seed to a metric of the epoch that the run reports."""
        chosen = {seed: _reported(run).chosen_by for seed, run in self.runs.items()}
        return {seed: self.values_at(metric, choice)[seed] for seed, choice in chosen.items()}

    def values_at(self, metric: MetricName, choice: str) -> dict[int, float]:
        """Seed to a metric of a choice of epoch, as in `EPOCHS`; runs without validation lack that choice."""
        choices = {seed: self._choices(run).get(choice) for seed, run in self.runs.items()}
        return {
            seed: chosen.metrics[self.feature].value(metric)
            for seed, chosen in choices.items()
            if chosen is not None
        }

    def epochs_at(self, choice: str) -> dict[int, int]:
        """Seed to the epoch of a choice."""
        choices = {seed: self._choices(run).get(choice) for seed, run in sorted(self.runs.items())}
        return {seed: chosen.epoch for seed, chosen in choices.items() if chosen is not None}

    def precision(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Average precision `(seeds, queries)`, NaN without a match, and identities `(queries,)`."""
        tables = [self._queries(self.runs[seed]) for seed in seeds]
        values = [table["average_precision"].to_numpy(zero_copy_only=False) for table in tables]
        return np.stack(values).astype(float), tables[0]["identity"].to_numpy()

    def _choices(self, run: RunFolder) -> EpochChoices:
        """The epochs of a run that may be reported, as the shown feature chooses them."""
        result = run.result
        if result is not None and result.choices is not None and _reported(run).feature == self.feature:
            return result.choices
        return choices_of(run, self.feature)

    def _queries(self, run: RunFolder) -> Any:
        table = parquet.read_table(run.queries)
        chosen_epoch = self._choices(run).get(_reported(run).chosen_by)
        assert chosen_epoch is not None
        chosen = compute.and_(
            compute.equal(table["feature"], self.feature), compute.equal(table["epoch"], chosen_epoch.epoch)
        )
        return table.filter(chosen).sort_by("sample_index")


def _reported(run: RunFolder) -> ReportedEpoch:
    result = run.result
    assert result is not None
    assert result.reported is not None
    return result.reported


def table_rows(ablation: Ablation, measured: Sequence[RowRuns], dataset: str) -> list[TableRow]:
    """The finished table.

    Args:
        ablation: Which table.
        measured: Its rows from top to bottom.
        dataset: The data set whose numbers of the paper are shown beside it; where the paper prints none for
            it, those of RGBNT201.
    """
    by_name = {one.row.name: one for one in measured}
    compared = {
        one.row.name: _compare(one, by_name[one.row.against])
        for one in measured
        if one.row.against is not None and one.runs.keys() & by_name[one.row.against].runs.keys()
    }
    verdicts = judge(compared)
    paper = {one.row.name: _paper(ablation.key, one.row, dataset) for one in measured}
    rows = []
    for one in measured:
        name, against = one.row.name, one.row.against
        ours, theirs = paper[name].get("mAP"), paper.get(against or "", {}).get("mAP")
        rows.append(
            TableRow(
                table=ablation.key,
                index=one.row.index,
                name=name,
                x=one.row.x,
                config=dict(one.changed),
                feature=one.feature,
                seeds=tuple(sorted(one.runs)),
                runs={seed: run.name for seed, run in sorted(one.runs.items())},
                mean_average_precision=ComparedMetric.of(
                    one.values("mAP"),
                    paper=ours,
                    against=against,
                    **_judged(compared.get(name), verdicts.get(name)),
                    paper_difference=None if ours is None or theirs is None else round(ours - theirs, 6),
                ),
                rank1=RowMetric.of(one.values("rank1"), paper=paper[name].get("rank1")),
                rank5=RowMetric.of(one.values("rank5"), paper=paper[name].get("rank5")),
                rank10=RowMetric.of(one.values("rank10"), paper=paper[name].get("rank10")),
                epochs={
                    choice: EpochSpread.of(one.values_at("mAP", choice), epoch=one.epochs_at(choice))
                    for choice in EPOCHS
                },
            )
        )
    return rows


def _compare(one: RowRuns, other: RowRuns) -> tuple[Difference, Difference]:
    """A row's mAP less that of the row it is compared with: over seeds, and over queries."""
    seeds = sorted(one.runs.keys() & other.runs.keys())
    ours, theirs = one.values("mAP"), other.values("mAP")
    row, identity = one.precision(seeds)
    reference, _ = other.precision(seeds)
    return (
        paired_over_seeds({s: ours[s] for s in seeds}, {s: theirs[s] for s in seeds}),
        # Queries of one identity are alike, so whole identities are resampled.
        bootstrap_over_queries(row, reference, identity),
    )


def _judged(compared: tuple[Difference, Difference] | None, verdict: Verdict | None) -> dict[str, Any]:
    if compared is None or verdict is None:
        return {}
    over_seeds, over_queries = compared
    return {
        "difference": over_seeds.difference,
        "difference_interval": over_seeds.interval,
        "query_interval": over_queries.interval,
        "p_value": verdict.p_value,
        "p_adjusted": verdict.adjusted,
        "real": verdict.real,
    }


def _paper(table: str, row: Row, dataset: str) -> dict[str, float]:
    """What the paper prints for a row, as fractions; empty where it prints nothing."""
    if row.index is None:
        return {}
    values = published(table).row(row.index).values
    printed = values.get(dataset) or values["rgbnt201"]
    return {metric: round(percent / 100, 6) for metric, percent in printed.items() if percent is not None}
