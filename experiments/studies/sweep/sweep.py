"""A sweep as a study: its trials are sampled one after the other, and each is a run."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_catalog.errors import describe_cause
from data_catalog.ray_failures import describe_failure
from data_catalog.storage.local_copies import local_files
from experiments.experiment_config import ConfigError, ExperimentConfig, ReportConfig
from experiments.planning.training_cost import TrainingCost
from experiments.run.conclusion import degenerate_runs
from experiments.run.run_folder import RESULT_FILE, RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import FailedRunError, RunError, RunResult
from experiments.run.run_tables import RunTables
from experiments.run.stop_request import STOP_FILE
from experiments.run.workers.ray_train import MEMORY_REMEDY, start_ray
from experiments.studies.study import Study
from experiments.studies.study_folder import StudyFolder
from experiments.studies.study_logger import StudyRun
from experiments.studies.sweep import sweep_figures
from experiments.studies.sweep.optuna_study import STORAGE_ERRORS, OptunaStudy, TrialFacts
from experiments.studies.sweep.search_space import trial_settings
from experiments.studies.sweep.stored_trials import TRIALS, StoredTrials
from experiments.studies.sweep.study_storage import find_sqlite_fault
from experiments.studies.sweep.sweep_result import (
    BestTrial,
    MetricsOnTest,
    SweepResult,
    SweepTrial,
    describe_values,
    find_best,
    find_front,
)
from experiments.studies.sweep.sweep_spec import SweepSpec, chosen_by
from experiments.studies.tuning import (
    STARTS,
    NodeLostError,
    cannot_go_on,
    lost_reason,
    trial_id,
    tune_trials,
)
from experiments.tracking.journal_folder import JOURNAL
from experiments.tracking.mlflow_store import MlflowRun

logger = logging.getLogger(__name__)

STATUS = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "crashed": "FAILED"}
"""MLflow's word for each state of a trial that has ended."""


class SweepStudy(Study[SweepResult]):
    """A sweep.

    Args:
        spec: What it searches; checked against the tables.
        tables: What the runs read.
        options: Where runs are kept and logged, and what their workers get.
        study_storage: URL of Optuna's storage; None for a SQLite file in the study's folder.
        concurrent: Trials at once; None for as many as there is room for.
        resume: Refuse to begin a new study.
    """

    kind = "sweep"
    unit = "trial"
    result_form = SweepResult

    def __init__(
        self,
        spec: SweepSpec,
        tables: RunTables,
        options: RunOptions,
        *,
        study_storage: str | None = None,
        concurrent: int | None = None,
        resume: bool = False,
    ) -> None:
        super().__init__(spec.recipe, spec.study_name(tables), tables, options)
        self.spec = spec
        self.study_storage = study_storage
        self.concurrent = concurrent
        self.resume = resume
        self.resumed = False
        self._trials: dict[int, SweepTrial] = {}
        self._runs: dict[str, StudyRun] = {}

    @property
    def fingerprint(self) -> str:
        """As in `SweepSpec`."""
        return self.spec.fingerprint(self.tables)

    def parameters(self) -> dict[str, Any]:
        """As in `Study`."""
        spec = self.spec
        return {
            "recipe": spec.recipe,
            "settings": " ".join(spec.settings),
            "seed": spec.base.seed,
            "early_stopping": spec.early_stopping,
            "objectives": "mAP, cost" if spec.two_objectives else "mAP",
            **{f"search.{d.name}": d.text.partition("=")[2] for d in spec.space.dimensions},
        }

    def open(self) -> None:
        """Open the Optuna study.

        Raises:
            ConfigError: The storage is that of another sweep, or there is no sweep to resume.
        """
        self.study = OptunaStudy(
            self.study_storage or f"sqlite:///{sweep_file(self.folder)}",
            self.folder.name,
            self.fingerprint,
            self.spec.space,
            self.spec.base.seed,
            self.spec.two_objectives,
            owner={"id": self.folder.uuid, "path": self.folder.location},
            stored=StoredTrials(self.folder),
        )
        self._read_trials()
        if self.resume and not self._trials:
            raise ConfigError(
                f"there is no sweep {self.folder.name} in {self.study.url} to resume; leave --resume out to "
                "begin it"
            )
        self.resumed = bool(self._trials)
        for note in [] if self.resumed else self._first_trial_notes():
            logger.warning("%s", note)

    def runs(self) -> list[StudyRun]:
        """The runs of the trials so far, each once: two trials with the same values are one run."""
        for trial in list(self._trials.values()):
            if trial.run not in self._runs:
                self._runs[trial.run] = self._study_run(trial)
        return list(self._runs.values())

    def has_all(self, result: SweepResult) -> bool:
        """As in `Study`."""
        return result.best is not None and self._count_missing(result.trials) == 0

    def is_trained(self) -> bool:
        """As in `Study`."""
        return not self._missing and all(trial.ended for trial in self._trials.values())

    def __getstate__(self) -> dict[str, Any]:
        # Tune stores all that a searcher refers to on the disk, where no password of a database may lie.
        return {}

    @property
    def total(self) -> int:
        """How many trials are asked for."""
        return self.spec.trials

    def progress(self) -> tuple[int, str]:
        """How many trials have ended, and the best one."""
        ended = [trial for trial in list(self._trials.values()) if trial.ended]
        best = find_best(ended)
        return len(ended), f"best {best.value:.1%} (trial {best.number})" if best else ""

    def statuses(self) -> dict[str, str]:
        """As in `Study`."""
        status = {trial.run: STATUS[trial.state] for trial in self._trials.values() if trial.ended}
        # A run that one trial trained to its end is finished, even if another trial with it was stopped.
        finished = [run.folder.name for run in self.runs() if run.folder.is_finished]
        return status | dict.fromkeys(finished, STATUS["finished"])

    def train(self) -> None:
        """As in `Study`.

        Raises:
            RunError: The study's database or Tune failed.
            StorageAwayError: The storage was away for too long.
        """
        start_ray(self.spec.base.train.workers, self.options.gpus_per_worker)
        try:
            for start in range(1, STARTS + 1):
                if not self._search(is_last=start == STARTS):
                    break
        except STORAGE_ERRORS as error:
            # Where the storage is away, this says so, and where not, the error is another one.
            self.folder.list_files()
            what = f"sweep {self.folder.name}, study in {self.study.url},"
            raise cannot_go_on(what, describe_cause(error)) from error
        self._read_trials()

    def _search(self, is_last: bool) -> bool:
        """Run the trials that are left; returns whether lost nodes left some, for which there is a start."""
        # Tune is imported after `start_ray` has set what Ray reads from the environment.
        from experiments.studies.sweep.tune_search import StoringScheduler, StudySearcher  # noqa: PLC0415

        spec, base = self.spec, self.spec.base
        costs = TrainingCost(self.tables)

        def describe(values: Mapping[str, Any]) -> TrialFacts:
            config = spec.config(values)
            return TrialFacts(self._run_folder(config).name, costs(config))

        def on_trial(trial: SweepTrial) -> None:
            self._trials[trial.number] = trial
            self._note_ended()

        scheduler = StoringScheduler(
            self.study, base.train.epochs, base.train.validate_every, spec.early_stopping
        )
        if spec.early_stopping and scheduler.halving is None:
            logger.warning(
                "no trial is stopped early: with %d epochs, validated every %d, there is nothing to stop it "
                "at",
                *(base.train.epochs, base.train.validate_every),
            )
        searcher = StudySearcher(
            self.study, spec, describe, on_trial, self._lost_reason, lambda: self.folder.has_file(STOP_FILE)
        )
        outcomes = tune_trials(
            self.tables,
            self.options,
            self.folder,
            base.train.workers,
            concurrent=self.concurrent,
            search_alg=searcher,
            scheduler=scheduler,
        )
        left = False
        for outcome in outcomes:
            if isinstance(outcome.error, NodeLostError) and not is_last:
                left = True
            elif outcome.error is not None:
                # Tune does not know the config of a trial whose node was lost before it reported anything.
                number = searcher.numbers[trial_id(outcome)]
                self.study.crash(number, describe_failure(outcome.error, MEMORY_REMEDY))
        return left

    def summarise(self, mlflow: MlflowRun) -> SweepResult:
        """The trials so far, with figures."""
        spec, trials = self.spec, list(self._trials.values())
        best = find_best(trials)
        result = SweepResult(
            study=self.folder.name,
            recipe=spec.recipe,
            settings=spec.settings,
            seed=spec.base.seed,
            space=tuple(dimension.text for dimension in spec.space.dimensions),
            objectives=("mAP", "cost") if spec.two_objectives else ("mAP",),
            feature=spec.base.report.feature,
            unit={"value": "fraction: mAP on the validation identities", "cost": "TFLOP of training"},
            trials=tuple(trials),
            best=None if best is None else self._tested(best),
            pareto=tuple(find_front(trials)),
            importance=self.study.importance(),
            missing=self._missing,
            wrong={t.run: t.reason for t in trials if t.state in ("failed", "crashed") and t.reason},
            notes=(*self._first_trial_notes(), *degenerate_runs([run.folder for run in self.runs()])),
            resumed=self.resumed,
            storage=self.study.url,
            files={},
            mlflow=mlflow,
        )
        figures = sweep_figures.draw_all(result, spec.space)
        for name, picture in figures.items():
            self.folder.write(f"{name}.png", picture)
        return result.model_copy(update={"files": {name: f"{name}.png" for name in figures}})

    def run(self) -> SweepResult:
        """As in `Study`.

        Raises:
            FailedRunError: None of the trials could be finished.
        """
        result = super().run()
        if result.best is None:
            reasons = {trial.reason or "was stopped early" for trial in result.trials}
            raise FailedRunError(
                f"no trial of sweep {self.folder.name} could be finished: {'; '.join(sorted(reasons))}; "
                "remove the cause, and run the same command again"
            )
        return result

    @property
    def _missing(self) -> int:
        """How many trials are left to run; a sweep that goes on makes up for those that crashed."""
        return self._count_missing(self._trials.values())

    def _count_missing(self, trials: Iterable[SweepTrial]) -> int:
        ended = sum(trial.state in ("finished", "pruned", "failed") for trial in trials)
        return max(0, self.spec.trials - ended)

    def _read_trials(self) -> None:
        """Read all trials from the storage, which may know more than the journal."""
        self._trials |= {trial.number: trial for trial in self.study.trials()}
        # A process may be killed after the storage has the end of a trial, and before the journal has it.
        self._note_ended()

    def _note_ended(self) -> None:
        """Write into the study's journal how trials ended, where it lacks that."""
        trials = [self._trials[number] for number in sorted(self._trials)]
        known = {event["number"] for event in self.folder.journal.read() if event["event"] == "trial"}
        for trial in trials:
            if trial.ended and trial.number not in known:
                known.add(trial.number)
                best = find_best([one for one in trials if one.number in known])
                reached = {} if best is None else {"best": best.value}
                value = {} if trial.value is None else {"value": trial.value}
                reason = {} if trial.reason is None else {"reason": trial.reason}
                self.folder.journal.append(
                    "trial", number=trial.number, state=trial.state, **value, **reached, **reason
                )

    def _study_run(self, trial: SweepTrial) -> StudyRun:
        config = self.spec.config(trial.values)
        name = f"trial {trial.number:02d}: {describe_values(trial.values)}"
        # Keys that MLflow has from older versions.
        tags = {"stmi.arm": name, "stmi.trial": str(trial.number), "stmi.seed": str(config.seed)}
        return StudyRun(self._run_folder(config), name, tags)

    def _run_folder(self, config: ExperimentConfig) -> RunFolder:
        return RunFolder.of(self.options.workspace, config, self.tables, self.options.storage)

    def _lost_reason(self, trial: SweepTrial, report: Mapping[str, Any]) -> str | None:
        """Why the result of a finished trial, or the journal of any other, cannot be found; or None."""
        folder = self._run_folder(self.spec.config(trial.values))
        return lost_reason(folder, RESULT_FILE if "finished" in report else JOURNAL, report)

    def _first_trial_notes(self) -> list[str]:
        """What says that the first trial is not the recipe, where the space does not hold it."""
        outside = self.spec.space.outside(self.spec.base.flat())
        return [f"the first trial is not the recipe: {'; '.join(outside)}"] if outside else []

    def _tested(self, trial: SweepTrial) -> BestTrial:
        """The chosen trial with its metrics on the test identities, which had no say."""
        result = self._run_folder(self.spec.config(trial.values)).result
        if result is None:
            raise RunError(
                f"run {trial.run} of trial {trial.number} has no result any more; restore its folder from "
                "a copy, or give the sweep another --name"
            )
        spec = self.spec
        return BestTrial(
            **dict(trial),
            test=measured_on_test(result, spec.base.report),
            settings=tuple(trial_settings(spec.recipe, spec.settings, trial.values)),
        )


def sweep_file(folder: StudyFolder) -> Path:
    """The SQLite file of a study, which is made from the stored trials where it is missing or damaged.

    For a study in object storage it is made anew each time: another machine may have gone on with the study.
    """
    file = local_files(folder) / "optuna.db"
    if not folder.is_local:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
    elif (fault := find_sqlite_fault(file)) is not None:
        aside = file.with_suffix(".damaged")
        logger.warning("%s is damaged (%s); it is made again from %s", file, fault, folder / TRIALS)
        file.replace(aside)
    return file


def measured_on_test(result: RunResult, report: ReportConfig) -> MetricsOnTest:
    """Test metrics of a trial's run at the epoch that gave its value."""
    choice = None if result.choices is None else result.choices.get(chosen_by(report))
    assert choice is not None
    metrics = choice.metrics[report.feature]
    return MetricsOnTest(
        epoch=choice.epoch, mean_average_precision=metrics.mean_average_precision, rank1=metrics.rank1
    )
