"""How Ray Tune runs a sweep: it asks the study for trials, stores what they report, and stops weak ones."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from experiments.experiment_config import ReportConfig
from experiments.studies.sweep.optuna_study import OptunaStudy, TrialFacts
from experiments.studies.sweep.sweep_result import SweepTrial
from experiments.studies.sweep.sweep_spec import SweepSpec, chosen_by
from experiments.tracking.journal import INTERRUPTED

REDUCTION = 3
"""Of the trials that reach a rung of successive halving, the best one in so many goes on."""
FIRST_RUNG = 9
"""The first rung is at the first validation after one in so many of the epochs."""


def trial_value(curve: Mapping[int, float], report: ReportConfig) -> float:
    """What a sweep maximises, from validation mAP by epoch: of the last one, or of the best."""
    return curve[max(curve)] if chosen_by(report) == "last" else max(curve.values())


class StudySearcher(Searcher):
    """Hands the study's trials to Tune: first those that a killed sweep left, then new ones.

    Args:
        study: The study.
        spec: What the sweep searches. Trials that crashed before do not count among its trials.
        describe: What is known of a trial before it runs.
        on_trial: Called with a trial as soon as it runs, and once it has ended.
        find_lost: From a trial that has ended and its last report: why what it stored cannot be found, or
            None. A trial that is lost counts as crashed.
        is_stopped: Whether the sweep was asked to stop, so that no other trial begins.
    """

    def __init__(
        self,
        study: OptunaStudy,
        spec: SweepSpec,
        describe: Callable[[Mapping[str, Any]], TrialFacts],
        on_trial: Callable[[SweepTrial], None],
        find_lost: Callable[[SweepTrial, Mapping[str, Any]], str | None] = lambda trial, report: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        known = study.trials()
        self.study = study
        self.left = [trial for trial in known if trial.state == "running"]
        self.new = spec.trials - sum(trial.state != "crashed" for trial in known)
        self.spec = spec
        self.describe = describe
        self.on_trial = on_trial
        self.find_lost = find_lost
        self.is_stopped = is_stopped
        self.numbers: dict[str, int] = {}

    # Ray documents the word FINISHED as an answer, and leaves it out of the annotation.
    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """The next trial's config, as `train_trial` takes it."""
        if self.is_stopped():
            return Searcher.FINISHED
        if self.left:
            trial = self.left.pop(0)
        elif self.new > 0:
            self.new -= 1
            trial = self.study.ask(self.describe, self.spec.base.flat())
        else:
            return Searcher.FINISHED
        self.numbers[trial_id] = trial.number
        self.on_trial(trial)
        return {"config": self.spec.config(trial.values).model_dump(mode="json"), "number": trial.number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note how a trial ended; one that crashed too often stays as running until its reason is known.

        One that was asked to stop stays so, too, and goes on at the next start.
        """
        number = self.numbers[trial_id]
        if error or result is None or INTERRUPTED in result:
            return
        trial = self.study.trials()[number]
        if lost := self.find_lost(trial, result):
            self.study.crash(number, lost)
        elif "stopped" in result:
            self.study.fail(number, result["stopped"])
        elif "failed" in result:
            self.study.crash(number, result["failed"])
        elif "finished" in result:
            self.study.finish(number, trial_value(trial.curve, self.spec.config(trial.values).report))
        else:
            self.study.prune(number)
        self.on_trial(self.study.trials()[number])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is in the study's storage."""


class StoringScheduler(FIFOScheduler):
    """Stores what trials report before a decision depends on it, and stops weak trials if asked to.

    Successive halving is Tune's (ASHA, Li et al. 2020, "A System for Massively Parallel Hyperparameter
    Tuning"). Its rungs are filled from the study, so that a sweep that goes on decides as if it had never
    been interrupted. The first trials are never stopped, for among fewer than `REDUCTION` none is the best of
    so many; and no trial at its last validation, since only its test is left then.

    Args:
        study: The study.
        epochs: Epochs of each trial.
        validate_every: Epochs between validations.
        early_stopping: Stop weak trials.
    """

    def __init__(self, study: OptunaStudy, epochs: int, validate_every: int, early_stopping: bool) -> None:
        super().__init__()
        self.study = study
        self.epochs = epochs
        first = validate_every * -(-epochs // (FIRST_RUNG * validate_every))
        # It is also given stored trials, which are not of Tune's type.
        self.halving: Any = None
        if early_stopping and first < epochs:
            self.halving = ASHAScheduler(
                time_attr="epoch",
                metric="validation_mAP",
                mode="max",
                max_t=epochs - 1,
                grace_period=first,
                reduction_factor=REDUCTION,
                stop_last_trials=False,
            )
            for trial in study.trials():
                if trial.state != "running":
                    self._fill_rungs(trial)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Let a trial take part."""
        if self.halving is not None:
            self.halving.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Store a report, and decide whether its trial goes on."""
        if "validation_mAP" not in result:
            return TrialScheduler.CONTINUE
        self.study.report(trial.config["number"], result["epoch"], result["validation_mAP"])
        return self._decide(tune_controller, trial, result)

    def _decide(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if self.halving is None or result["epoch"] >= self.epochs:
            return TrialScheduler.CONTINUE
        decision = self.halving.on_trial_result(tune_controller, trial, result)
        return decision if trial.config["number"] >= REDUCTION else TrialScheduler.CONTINUE

    def _fill_rungs(self, trial: SweepTrial) -> None:
        stored = SimpleNamespace(trial_id=f"stored-{trial.number}", config={"number": trial.number})
        self.halving.on_trial_add(None, stored)
        for epoch, value in trial.curve.items():
            self._decide(None, stored, {"epoch": epoch, "validation_mAP": value})
