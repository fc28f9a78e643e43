"""A sweep as a study: trials drawn one after the other, each a run, and what came of them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.planning.training_cost import TrainingCost
from experiments.recipes import ConfigError, ReportConfig
from experiments.run.run_data import RunTables
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import RunError, RunResult
from experiments.studies.study import (
    Member,
    StudyFolder,
    StudyMirror,
    begin_study,
    warn_of_other_code,
    watched,
)
from experiments.studies.sweep import optuna_figures
from experiments.studies.sweep.optuna_study import STORAGE_ERRORS, Drawn, SweepStudy
from experiments.studies.sweep.sweep_result import (
    BestTrial,
    SweepResult,
    SweepTrial,
    TestMetrics,
    best_of,
    pareto_of,
    words,
)
from experiments.studies.sweep.sweep_spec import Sweep, chosen_by
from experiments.studies.tuning import reason_of, tune_trials
from experiments.tracking.mlflow_logger import MlflowRun

logger = logging.getLogger(__name__)

STATUS = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "crashed": "FAILED"}
"""MLflow's word for each state of a trial that has ended."""


@dataclass
class _Running:
    """What the progress bar and MLflow are shown of a sweep meanwhile."""

    members: list[Member] = field(default_factory=list)
    trials: dict[int, SweepTrial] = field(default_factory=dict)

    def show(self, bar: tqdm) -> None:
        ended = [trial for trial in list(self.trials.values()) if trial.state != "running"]
        best = best_of(ended)
        bar.set_postfix_str(f"best {best.value:.1%} (trial {best.number})" if best else "", refresh=False)
        bar.update(len(ended) - bar.n)


def run_sweep(
    sweep: Sweep,
    tables: RunTables,
    workspace: Path,
    tracking_uri: str,
    *,
    study_storage: str | None = None,
    storage_uri: str | None = None,
    gpus_per_worker: float | None = None,
    concurrent: int | None = None,
    resume: bool = False,
) -> SweepResult:
    """Run what is missing of a sweep, and write what came of it.

    Args:
        sweep: Checked against its tables.
        tables: What the runs read.
        workspace: Folder of all runs.
        tracking_uri: MLflow's.
        study_storage: URL of the study's storage; None for a SQLite file in the study's folder.
        storage_uri: Folder or URI of checkpoints; None for the runs' own folders.
        gpus_per_worker: None for one each where the cluster has GPUs; 0 trains on processors.
        concurrent: Trials at once; None for as many as there is room for.
        resume: Refuse to begin a new study.

    Raises:
        ConfigError: The name or the storage is that of another sweep.
        RunError: Another process runs this sweep, or none of its trials could be finished.
    """
    # After `start_ray` has set what Ray reads from the environment.
    from ray.tune import TuneError  # noqa: PLC0415

    folder = StudyFolder.of(workspace, sweep.named(tables))
    url = study_storage or f"sqlite:///{folder.path / 'optuna.db'}"
    with folder.only_one():
        folder.belong_to("sweep", sweep.mark(tables))
        study = SweepStudy(
            url,
            folder.name,
            sweep.mark(tables),
            sweep.space,
            sweep.base.seed,
            sweep.two_objectives,
            owner={"id": folder.identity, "path": str(folder.path)},
        )
        before = study.trials()
        if resume and not before:
            raise ConfigError(
                f"there is no sweep {folder.name} in {study.url} to resume; leave --resume out to begin it"
            )
        # Whoever was killed may have stored how a trial ended, and not written it down.
        _note_ended(folder, before)
        running = _Running()
        mirror = _mirror(sweep, folder, workspace, tracking_uri)
        if missing(sweep, before) or any(trial.state == "running" for trial in before):
            mirror.reopen()
            begin_study(folder)
            with watched(running.members, mirror, running.show, sweep.trials, "trial"):
                try:
                    _search(
                        sweep,
                        study,
                        folder,
                        tables,
                        workspace,
                        storage_uri,
                        gpus_per_worker,
                        concurrent,
                        running,
                    )
                except (*STORAGE_ERRORS, TuneError) as error:
                    # What searcher or scheduler met comes in Tune's words, with a traceback before it.
                    reason = str(error).strip().rpartition("\n")[2]
                    raise RunError(
                        f"sweep {folder.name}, study in {study.url}, cannot go on ({reason}); what was "
                        "measured is kept, so run the same command again once the cause is removed"
                    ) from error
        result = _result(sweep, study, tables, workspace, bool(before), mirror.parent.place)
        drawn = optuna_figures.draw_all(folder.path, result, sweep.space)
        result = result.model_copy(update={"files": {path.stem: str(path) for path in drawn}})
        members = _members(sweep, study.trials(), tables, workspace)
        warn_of_other_code(members)
        # Before MLflow is told of it, which may take its time, or fail.
        folder.write_result(result)
        mirror.sync(members)
        result = result.model_copy(update={"mlflow": mirror.parent.place})
        files = [folder.write_result(result), *drawn]
        status = {trial.run: STATUS[trial.state] for trial in study.trials() if trial.state in STATUS}
        # A run that a trial trained to its end is finished, though another trial drew it too and was stopped.
        status |= {m.folder.name: STATUS["finished"] for m in members if m.folder.is_finished}
        mirror.finish(members, status, files, complete=not result.missing)
    if result.best is None:
        reasons = {trial.reason or "was stopped early" for trial in result.trials}
        raise RunError(f"no trial of sweep {folder.name} could be finished: {'; '.join(sorted(reasons))}")
    return result


def _search(
    sweep: Sweep,
    study: SweepStudy,
    folder: StudyFolder,
    tables: RunTables,
    workspace: Path,
    storage_uri: str | None,
    gpus_per_worker: float | None,
    concurrent: int | None,
    running: _Running,
) -> None:
    # Tune is imported after `start_ray` has set what Ray reads from the environment.
    from experiments.studies.sweep.searcher import StoringScheduler, StudySearcher  # noqa: PLC0415

    base = sweep.base
    costs = TrainingCost(tables)

    def describe(values: Mapping[str, Any]) -> Drawn:
        config = sweep.config(values)
        return Drawn(RunFolder.of(workspace, config, tables).name, costs(config))

    def told(trial: SweepTrial) -> None:
        running.trials[trial.number] = trial
        if trial.run not in [member.folder.name for member in running.members]:
            running.members.append(_member(sweep, trial, tables, workspace))
        _note_ended(folder, [running.trials[number] for number in sorted(running.trials)])

    for trial in study.trials():
        running.trials[trial.number] = trial
    running.members += _members(sweep, list(running.trials.values()), tables, workspace)
    scheduler = StoringScheduler(study, base.train.epochs, base.train.validate_every, sweep.early_stopping)
    if sweep.early_stopping and scheduler.halving is None:
        logger.warning(
            "no trial is stopped early: with %d epochs, validated every %d, there is nothing to stop it at",
            *(base.train.epochs, base.train.validate_every),
        )
    outcomes = tune_trials(
        tables,
        workspace,
        folder,
        storage_uri,
        base.train.workers,
        gpus_per_worker,
        concurrent=concurrent,
        search_alg=StudySearcher(study, sweep.trials, sweep.config, describe, base.flat(), told),
        scheduler=scheduler,
    )
    for outcome in (outcomes[place] for place in range(len(outcomes))):
        if outcome.error is not None:
            assert outcome.config is not None
            study.crash(outcome.config["number"], reason_of(outcome.error))
    _note_ended(folder, study.trials())


def _note_ended(folder: StudyFolder, trials: Sequence[SweepTrial]) -> None:
    """Write into the study's journal how trials ended, where it does not know yet."""
    known = {event["number"] for event in folder.journal.read() if event["event"] == "trial"}
    for trial in trials:
        if trial.state != "running" and trial.number not in known:
            best = best_of([one for one in trials if one.number in {*known, trial.number}])
            reached = {} if best is None else {"best": best.value}
            value = {} if trial.value is None else {"value": trial.value}
            folder.journal.append("trial", number=trial.number, state=trial.state, **value, **reached)
            known.add(trial.number)


def _mirror(sweep: Sweep, folder: StudyFolder, workspace: Path, tracking_uri: str) -> StudyMirror:
    parameters = {
        "recipe": sweep.recipe,
        "settings": " ".join(sweep.settings),
        "seed": sweep.base.seed,
        "early_stopping": sweep.early_stopping,
        "objectives": "mAP, cost" if sweep.two_objectives else "mAP",
    }
    parameters |= {f"search.{d.name}": d.text.partition("=")[2] for d in sweep.space.dimensions}
    return StudyMirror(tracking_uri, workspace, folder, sweep.recipe, parameters, {"stmi.kind": "sweep"})


def _members(sweep: Sweep, trials: Sequence[SweepTrial], tables: RunTables, workspace: Path) -> list[Member]:
    """The runs of trials, each once: two trials with the same values are one run."""
    first: dict[str, SweepTrial] = {}
    for trial in trials:
        first.setdefault(trial.run, trial)
    return [_member(sweep, trial, tables, workspace) for trial in first.values()]


def _member(sweep: Sweep, trial: SweepTrial, tables: RunTables, workspace: Path) -> Member:
    config = sweep.config(trial.values)
    name = f"trial {trial.number:02d}: {words(trial.values)}"
    tags = {"stmi.arm": name, "stmi.trial": str(trial.number), "stmi.seed": str(config.seed)}
    return Member(RunFolder.of(workspace, config, tables), config, name, tags)


def missing(sweep: Sweep, trials: Sequence[SweepTrial]) -> int:
    """How many trials are left to run; those that crashed are made up for when the sweep goes on."""
    return max(0, sweep.trials - sum(trial.state in ("finished", "pruned", "failed") for trial in trials))


def _result(
    sweep: Sweep, study: SweepStudy, tables: RunTables, workspace: Path, resumed: bool, mlflow: MlflowRun
) -> SweepResult:
    """All that a sweep has come to so far."""
    trials = study.trials()
    best = best_of(trials)
    return SweepResult(
        study=study.name,
        recipe=sweep.recipe,
        settings=sweep.settings,
        seed=sweep.base.seed,
        space=tuple(dimension.text for dimension in sweep.space.dimensions),
        objectives=("mAP", "cost") if sweep.two_objectives else ("mAP",),
        feature=sweep.base.report.feature,
        unit={"value": "fraction: mAP on the validation identities", "cost": "TFLOP of training"},
        trials=tuple(trials),
        best=None if best is None else _best(sweep, best, tables, workspace),
        pareto=tuple(pareto_of(trials)),
        importance=study.importance(),
        missing=missing(sweep, trials),
        resumed=resumed,
        storage=study.url,
        files={},
        mlflow=mlflow,
    )


def _best(sweep: Sweep, trial: SweepTrial, tables: RunTables, workspace: Path) -> BestTrial:
    """The chosen trial with its metrics on the test identities, which had no say."""
    result = RunFolder.of(workspace, sweep.config(trial.values), tables).result
    if result is None:
        raise RunError(
            f"run {trial.run} of trial {trial.number} has no result any more; its folder was changed"
        )
    return BestTrial(**dict(trial), test=measured_on_test(result, sweep.base.report))


def measured_on_test(result: RunResult, report: ReportConfig) -> TestMetrics:
    """Test metrics of a trial's run at the epoch that gave its value."""
    choice = None if result.choices is None else result.choices.get(chosen_by(report))
    assert choice is not None
    metrics = choice.metrics[report.feature]
    return TestMetrics(
        epoch=choice.epoch, mean_average_precision=metrics.mean_average_precision, rank1=metrics.rank1
    )
