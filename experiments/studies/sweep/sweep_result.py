"""What came of a sweep: its trials, the best one, and the front of mAP and cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run.run_data import RunTables
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import RunError
from experiments.studies.sweep.optuna_study import SweepStudy, SweepTrial
from experiments.studies.sweep.sweep_spec import Sweep, chosen_by


def best_of(trials: Sequence[SweepTrial]) -> SweepTrial | None:
    """The finished trial with the highest value; the first of several."""
    finished = [(trial.value, -trial.number, trial) for trial in trials if trial.value is not None]
    return max(finished)[-1] if finished else None


def pareto_of(trials: Sequence[SweepTrial]) -> list[SweepTrial]:
    """The finished trials that no other one beats in value without costing more, from cheap to dear."""
    front = []
    highest = float("-inf")
    finished = [(trial.cost, -trial.value, trial.number) for trial in trials if trial.value is not None]
    for _, loss, number in sorted(finished):
        if -loss > highest:
            front.append(number)
            highest = -loss
    return [trials[number] for number in front]


def missing(sweep: Sweep, trials: Sequence[SweepTrial]) -> int:
    """How many trials are left to run; those that crashed are made up for when the sweep goes on."""
    return max(0, sweep.trials - sum(trial.state in ("finished", "pruned", "failed") for trial in trials))


def words(values: Mapping[str, Any]) -> str:
    """A trial's values in a few words: `perturbation=0.012 tokens=4`."""
    parts = {name.rpartition(".")[2]: value for name, value in values.items()}
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in parts.items()
    )


def trial_facts(trial: SweepTrial) -> dict[str, Any]:
    """A trial as JSON values."""
    return {
        "number": trial.number,
        "state": trial.state,
        "config": dict(trial.values),
        "value": trial.value,
        "cost": trial.cost,
        "epochs": max(trial.curve, default=0),
        "curve": {str(epoch): value for epoch, value in trial.curve.items()},
        "run": trial.run,
        "reason": trial.reason,
    }


def sweep_result(
    sweep: Sweep, study: SweepStudy, tables: RunTables, workspace: Path, resumed: bool
) -> dict[str, Any]:
    """All that a sweep has come to so far, JSON values only; see `run_sweep`."""
    trials = study.trials()
    best = best_of(trials)
    base = sweep.base
    return {
        "study": study.name,
        "kind": "sweep",
        "recipe": sweep.recipe,
        "settings": list(sweep.settings),
        "seed": base.seed,
        "space": [dimension.text for dimension in sweep.space.dimensions],
        "objectives": ["mAP", "cost"] if sweep.two_objectives else ["mAP"],
        "feature": base.report.feature,
        "unit": {"value": "fraction: mAP on the validation identities", "cost": "TFLOP of training"},
        "trials": [trial_facts(trial) for trial in trials],
        "best": None if best is None else trial_facts(best) | {"test": _test(sweep, best, tables, workspace)},
        "pareto": [trial_facts(trial) for trial in pareto_of(trials)],
        "importance": study.importance(),
        "missing": missing(sweep, trials),
        "resumed": resumed,
        "storage": study.url,
    }


def _test(sweep: Sweep, trial: SweepTrial, tables: RunTables, workspace: Path) -> dict[str, Any]:
    """The chosen trial on the test identities, which had no say, at the epoch that gave its value."""
    result = RunFolder.of(workspace, sweep.config(trial.values), tables).result
    if result is None:
        raise RunError(
            f"run {trial.run} of trial {trial.number} has no result any more; its folder was changed"
        )
    report = sweep.base.report
    choice = result["choices"][chosen_by(report)]
    metrics = choice["metrics"][report.feature]
    return {"epoch": choice["epoch"]} | {name: metrics[name] for name in ("mAP", "rank1")}
