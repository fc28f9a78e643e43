"""An ablation's rows: spread over seeds, the paper's numbers beside them, and verdicts on the differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from experiments.run.conclusion import find_choices
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import EpochMetrics, Hyperedges, MetricName
from experiments.studies.ablation.ablation_result import (
    EPOCHS,
    ComparedMetric,
    EpochSpread,
    RowMetric,
    SeedSpread,
    TableRow,
)
from experiments.studies.ablation.rows import Ablation, Row
from experiments.studies.published import published
from experiments.studies.significance import bootstrap_over_queries, paired_over_seeds, split_variance
from experiments.studies.verdicts import Comparison, Verdict, judge


@dataclass(frozen=True)
class RowRuns:
    """The finished runs of a row, and their numbers.

    Attributes:
        row: The row.
        feature: The retrieval feature that it shows.
        runs: Seed to the finished run.
        changed: Settings that differ from the recipe, by full name.
    """

    row: Row
    feature: str
    runs: Mapping[int, RunFolder]
    changed: Mapping[str, Any]

    def epochs(self, choice: str | None = None) -> dict[int, EpochMetrics]:
        """Seed to a choice of epoch, as in `EPOCHS`, or to the one that the run reports.

        The shown feature chooses its own epochs. Runs without validation lack that choice.
        """
        found = {seed: self._epoch(run, choice) for seed, run in sorted(self.runs.items())}
        return {seed: epoch for seed, epoch in found.items() if epoch is not None}

    def values(self, metric: MetricName, choice: str | None = None) -> dict[int, float]:
        """Seed to a metric at a choice of epoch, as in `epochs`."""
        return {seed: e.metrics[self.feature].value(metric) for seed, e in self.epochs(choice).items()}

    def hyperedges(self) -> dict[int, Hyperedges]:
        """Seed to what the hyperedges of a run are like on the test identities, where it has any."""
        found = {seed: run.finished_result.hyperedges.get("test") for seed, run in sorted(self.runs.items())}
        return {seed: hyperedges for seed, hyperedges in found.items() if hyperedges is not None}

    def precision(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Average precision `(seeds, queries)`, NaN without a match, and identities `(queries,)`."""
        reported = self.epochs()
        tables = [self._queries(self.runs[seed], reported[seed].epoch) for seed in seeds]
        values = [table["average_precision"].to_numpy(zero_copy_only=False) for table in tables]
        return np.stack(values).astype(float), tables[0]["identity"].to_numpy()

    def _epoch(self, run: RunFolder, choice: str | None) -> EpochMetrics | None:
        result = run.finished_result
        assert result.reported is not None
        is_reported = result.choices is not None and result.reported.feature == self.feature
        choices = result.choices if is_reported else find_choices(run, self.feature)
        assert choices is not None
        return choices.get(choice or result.reported.chosen_by)

    def _queries(self, run: RunFolder, epoch: int) -> pa.Table:
        table = run.read_queries()
        chosen = compute.and_(
            compute.equal(table["feature"], self.feature), compute.equal(table["epoch"], epoch)
        )
        return table.filter(chosen).sort_by("sample_index")


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
        # Another feature of runs of another row has no hyperedges of its own.
        hyperedges = one.hyperedges() if one.row.feature is None else {}
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
                    choice: EpochSpread.of(
                        one.values("mAP", choice),
                        epoch={seed: e.epoch for seed, e in one.epochs(choice).items()},
                    )
                    for choice in EPOCHS
                },
                hyperedge_size=SeedSpread.of({seed: each.size for seed, each in hyperedges.items()})
                if hyperedges
                else None,
            )
        )
    return rows


def degenerate_rows(measured: Sequence[RowRuns]) -> list[str]:
    """The rows of a table whose hypergraphs do nothing, a sentence for each that names the numbers."""
    sentences = []
    for one in measured:
        found = [facts.warning for facts in one.hyperedges().values() if one.row.feature is None]
        warnings = [warning for warning in found if warning is not None]
        if warnings:
            sentences.append(f"{one.row.name}, {len(warnings)} of {len(found)} runs: {warnings[0]}.")
    return sentences


def best_on_validation(measured: Sequence[RowRuns]) -> str | None:
    """Which row is best on validation identities, in a sentence; None where none was validated."""
    found: list[tuple[float, RowRuns]] = []
    for one in measured:
        validated = [run.finished_result.validation for run in one.runs.values()]
        values = [metrics[one.feature].value("mAP") for metrics in validated if metrics is not None]
        if values:
            found.append((float(np.mean(values)), one))
    if not found:
        return None
    highest, best = max(found, key=lambda entry: entry[0])
    settings = " ".join(f"--set {setting}" for setting in best.row.settings)
    tested = float(np.mean(list(best.values("mAP").values())))
    return (
        f"Of all rules, {best.row.name} ({settings}) is best on validation identities: mAP {highest:.1%} "
        f"there, {tested:.1%} on test."
    )


def _compare(one: RowRuns, other: RowRuns) -> Comparison:
    """A row's mAP less that of the row it is compared with."""
    seeds = sorted(one.runs.keys() & other.runs.keys())
    ours, theirs = one.values("mAP"), other.values("mAP")
    row, identity = one.precision(seeds)
    reference, _ = other.precision(seeds)
    return Comparison(
        paired_over_seeds({s: ours[s] for s in seeds}, {s: theirs[s] for s in seeds}),
        # Queries of one identity are alike, so whole identities are resampled.
        bootstrap_over_queries(row, reference, identity),
        split_variance(row, reference, identity),
    )


def _judged(compared: Comparison | None, verdict: Verdict | None) -> dict[str, Any]:
    if compared is None or verdict is None:
        return {}
    return {
        "difference": compared.over_seeds.difference,
        "difference_interval": compared.over_seeds.interval,
        "query_interval": compared.over_queries.interval,
        "p_value": verdict.p_value,
        "p_adjusted": verdict.adjusted,
        "real": verdict.real,
        "verdict": verdict.word,
        "seeds_needed": verdict.seeds_needed,
        "advice": verdict.advice,
    }


def _paper(table: str, row: Row, dataset: str) -> dict[MetricName, float]:
    """What the paper prints for a row, as fractions; empty where it prints nothing."""
    if row.index is None:
        return {}
    printed = published(table).row(row.index)
    return printed.fractions(dataset) or printed.fractions("rgbnt201")
