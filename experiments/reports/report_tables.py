"""The tables of a report: the rows of an ablation, the trials of a sweep."""

from collections.abc import Sequence
from typing import Any

from experiments.reports.recorded_study import RecordedStudy
from experiments.reports.report_page import PageRow, PageTable
from experiments.studies.ablation.ablation_result import TableRow
from experiments.studies.ablation.table_text import HEADER, cells
from experiments.studies.sweep.sweep_result import SweepResult, SweepTrial


def ablation_tables(study: RecordedStudy) -> list[PageTable]:
    """The tables of an ablation, as in its own Markdown."""
    tables = []
    for key in study.ablation.tables:
        rows = study.ablation.find_rows(key)
        page_rows = tuple(
            PageRow(
                key=f"{key}-{number}",
                cells=tuple(cells(row)),
                separate=row.index is None and row.x is None,
                runs=tuple(row.runs.values()),
            )
            for number, row in enumerate(rows)
        )
        tables.append(PageTable(key, study.ablation.titles[key], HEADER, page_rows, ablation_verdict(rows)))
    return tables


def ablation_verdict(rows: Sequence[TableRow]) -> str:
    """The differences of a table by their verdict, in words, and what would decide the undecided ones."""
    found: dict[str, list[str]] = {"Real": [], "Not real": []}
    for row in rows:
        metric = row.mean_average_precision
        if metric.difference is not None:
            advice = f" ({metric.advice})" if metric.advice else ""
            verdict = f"{metric.shown_verdict.capitalize()}{advice}"
            points = f"{100 * metric.difference:+.1f} points"
            found.setdefault(verdict, []).append(f"{row.name} minus {metric.against} ({points})")
    return " ".join(f"{verdict}: {'; '.join(names)}." for verdict, names in found.items() if names)


def sweep_table(study: RecordedStudy) -> PageTable:
    """The trials of a sweep, the best one first."""
    trials = sorted(study.sweep.trials, key=_rank)
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    front = {trial.number for trial in study.sweep.pareto}
    header = ("trial", "validation mAP, %", "state", "epochs", "cost, TFLOP", *names, "on the Pareto front")
    rows = tuple(
        PageRow(
            key=f"trial-{trial.number}",
            cells=(
                str(trial.number),
                "" if trial.value is None else f"{100 * trial.value:.2f}",
                ": ".join(filter(None, [trial.state, trial.reason])),
                _shown(trial.epochs),
                _shown(trial.cost),
                *(_shown(trial.values.get(name)) for name in names),
                "yes" if trial.number in front else "",
            ),
            separate=trial.value is None,
            runs=() if study.find_run(trial.run) is None else (trial.run,),
        )
        for trial in trials
    )
    return PageTable("trials", "Trials", header, rows, _sweep_verdict(study.sweep))


def _rank(trial: SweepTrial) -> tuple[bool, float, int]:
    return trial.value is None, -(trial.value or 0.0), trial.number


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _sweep_verdict(sweep: SweepResult) -> str:
    if (best := sweep.best) is None:
        return "No trial could be finished."
    settings = ", ".join(f"{name}={_shown(value)}" for name, value in best.values.items())
    return (
        f"Best: trial {best.number} ({settings}), {100 * best.value:.2f} % validation mAP, and "
        f"{100 * best.test.mean_average_precision:.2f} % on the test identities at epoch {best.test.epoch}. "
        "The test identities did not influence the choice of trial and epoch. The best of many trials is "
        "better than it would be in a second training: train it with other seeds before you compare it."
        + (f" All that makes it: {sweep.best_options}." if best.settings else "")
    )
