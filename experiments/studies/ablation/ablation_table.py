"""An ablation's rows: spread over seeds, the paper's numbers beside them, and which differences are real."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pyarrow import compute, parquet

from experiments.run.run_folder import RunFolder
from experiments.run.run_result import choices_of
from experiments.studies.ablation.rows import Ablation, Row
from experiments.studies.published import published
from experiments.studies.significance import (
    Difference,
    Verdict,
    bootstrap_over_queries,
    judge,
    paired_over_seeds,
    summarise,
)

METRICS = ("mAP", "rank1", "rank5", "rank10")
EPOCHS = {
    "last": "the last epoch",
    "validation": "the epoch chosen on validation identities",
    "best_on_test": "the epoch best on test, which flatters",
}
"""The choices of epoch that every run measures, in words."""


@dataclass(frozen=True)
class Measured:
    """A row as it was measured.

    Attributes:
        row: Which.
        feature: The retrieval feature that it shows.
        runs: Seed to the finished run.
        against: Name of the row that it is compared with; None for the first.
        changed: Settings that differ from the recipe, by flat name.
    """

    row: Row
    feature: str
    runs: Mapping[int, RunFolder]
    against: str | None
    changed: Mapping[str, Any]

    def values(self, metric: str) -> dict[int, float]:
        """Seed to a metric of the epoch that the run reports."""
        chosen = {seed: _result(run)["reported"]["chosen_by"] for seed, run in self.runs.items()}
        return {seed: self.values_at(metric, choice)[seed] for seed, choice in chosen.items()}

    def values_at(self, metric: str, choice: str) -> dict[int, float]:
        """Seed to a metric of a choice of epoch, as in `EPOCHS`; runs without validation lack that choice."""
        choices = {seed: self._choices(run)[choice] for seed, run in self.runs.items()}
        return {seed: c["metrics"][self.feature][metric] for seed, c in choices.items() if c is not None}

    def epochs_at(self, choice: str) -> dict[str, int]:
        """Seed, as a word, to the epoch that a choice came to."""
        choices = {str(seed): self._choices(run)[choice] for seed, run in sorted(self.runs.items())}
        return {seed: c["epoch"] for seed, c in choices.items() if c is not None}

    def precision(self, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Average precision `(seeds, queries)`, NaN without a match, and identities `(queries,)`."""
        tables = [self._queries(self.runs[seed]) for seed in seeds]
        values = [table["average_precision"].to_numpy(zero_copy_only=False) for table in tables]
        return np.stack(values).astype(float), tables[0]["identity"].to_numpy()

    def _choices(self, run: RunFolder) -> dict[str, Any]:
        """The epochs of a run that may be reported, as the shown feature chooses them."""
        if _result(run)["reported"]["feature"] == self.feature:
            return _result(run)["choices"]
        return choices_of(run, self.feature)

    def _queries(self, run: RunFolder) -> Any:
        table = parquet.read_table(run.queries)
        epoch = self._choices(run)[_result(run)["reported"]["chosen_by"]]["epoch"]
        chosen = compute.and_(
            compute.equal(table["feature"], self.feature), compute.equal(table["epoch"], epoch)
        )
        return table.filter(chosen).sort_by("sample_index")


def _result(run: RunFolder) -> dict[str, Any]:
    result = run.result
    assert result is not None
    return result


@dataclass(frozen=True)
class _Compared:
    """A row's mAP less that of the row it is compared with."""

    seeds: Difference
    queries: Difference


def table_rows(ablation: Ablation, measured: Sequence[Measured], dataset: str) -> list[dict[str, Any]]:
    """The finished table, JSON values only; every number is a fraction.

    Args:
        ablation: Which table.
        measured: Its rows from top to bottom; one without a finished run has null for what it lacks.
        dataset: Whose numbers of the paper stand beside it; where it prints none for it, those of RGBNT201.

    Returns:
        For each row `table`, `index`, `name`, `x`, `config` (what it changes in the recipe), `feature`,
        `seeds`, `runs` (seed to run), and for each metric `mean`, `std`, `interval` (95 % over seeds),
        `values` (by seed) and `paper`. `mAP` also has the `difference` from the row that it is compared
        `against`, with `difference_interval` (over seeds) and `query_interval` (over other queries),
        the paper's own `paper_difference`, `p_value` (the larger of both tests), `p_adjusted` (for the
        number of differences that the table shows) and `real`. `epochs` has the mAP of each choice of epoch
        in `EPOCHS`, side by side, null where no run has it, and which `epoch` that was by seed: the feature's
        own choice, where it is another than the one that the runs report.
    """
    by_name = {one.row.name: one for one in measured}
    compared = {
        one.row.name: _compare(one, by_name[one.against])
        for one in measured
        if one.against is not None and one.runs.keys() & by_name[one.against].runs.keys()
    }
    verdicts = judge({name: (both.seeds, both.queries) for name, both in compared.items()})
    paper = {one.row.name: _paper(ablation.key, one.row, dataset) for one in measured}
    rows = []
    for one in measured:
        name = one.row.name
        metrics = {
            metric: _summary(one.values(metric)) | {"paper": paper[name].get(metric)} for metric in METRICS
        }
        ours, theirs = paper[name].get("mAP"), paper.get(one.against or "", {}).get("mAP")
        metrics["mAP"] |= {
            "against": one.against,
            **_judged(compared.get(name), verdicts.get(name)),
            "paper_difference": None if ours is None or theirs is None else round(ours - theirs, 6),
        }
        rows.append(
            {
                "table": ablation.key,
                "index": one.row.index,
                "name": name,
                "x": one.row.x,
                "config": dict(one.changed),
                "feature": one.feature,
                "seeds": sorted(one.runs),
                "runs": {str(seed): run.name for seed, run in sorted(one.runs.items())},
                **metrics,
                "epochs": {
                    choice: _summary(one.values_at("mAP", choice)) | {"epoch": one.epochs_at(choice)}
                    for choice in EPOCHS
                },
            }
        )
    return rows


def _compare(one: Measured, other: Measured) -> _Compared:
    seeds = sorted(one.runs.keys() & other.runs.keys())
    ours, theirs = one.values("mAP"), other.values("mAP")
    row, identity = one.precision(seeds)
    reference, _ = other.precision(seeds)
    return _Compared(
        paired_over_seeds({s: ours[s] for s in seeds}, {s: theirs[s] for s in seeds}),
        # Queries of one identity fare alike, so identities are what is drawn again.
        bootstrap_over_queries(row, reference, identity),
    )


def _judged(compared: _Compared | None, verdict: Verdict | None) -> dict[str, Any]:
    if compared is None or verdict is None:
        names = ("difference", "difference_interval", "query_interval", "p_value", "p_adjusted", "real")
        return dict.fromkeys(names)
    return {
        "difference": compared.seeds.difference,
        "difference_interval": compared.seeds.interval,
        "query_interval": compared.queries.interval,
        "p_value": verdict.p_value,
        "p_adjusted": verdict.adjusted,
        "real": verdict.real,
    }


def _summary(values: Mapping[int, float]) -> dict[str, Any]:
    if not values:
        return {"mean": None, "std": None, "interval": None, "values": {}}
    summary = asdict(summarise([values[seed] for seed in sorted(values)]))
    del summary["seeds"]
    return summary | {"values": {str(seed): values[seed] for seed in sorted(values)}}


def _paper(table: str, row: Row, dataset: str) -> dict[str, float]:
    """What the paper prints for a row, as fractions; empty where it prints nothing."""
    if row.index is None:
        return {}
    values = published(table).row(row.index).values
    printed = values.get(dataset) or values["rgbnt201"]
    return {metric: round(percent / 100, 6) for metric, percent in printed.items() if percent is not None}
