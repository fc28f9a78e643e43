"""The result of a sweep: its trials, the best one, and the Pareto front of mAP and cost."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from data_catalog.records import Record
from experiments.experiment_config import SettingName
from experiments.recipe_files import BUILT_IN
from experiments.studies.study_result import StudyResult

State = Literal["running", "finished", "pruned", "failed", "crashed"]


class SweepTrial(Record):
    """A trial of a sweep."""

    number: int
    """From 0, in the order in which the trials were sampled."""
    state: State
    """"pruned" was stopped early; "failed" stopped itself and would stop again; "crashed" ended with an error
    too often, and another trial replaces it when the sweep goes on."""
    values: dict[SettingName, Any] = Field(alias="config")
    """The sampled settings, by full name."""
    value: float | None
    """What the sweep maximises: mAP on the validation identities, a fraction. None unless finished."""
    cost: float
    """Cost of training, in TFLOP."""
    epochs: int
    """The last epoch that was validated; 0 for none."""
    curve: dict[int, float]
    """Validation mAP by epoch."""
    run: str
    """Name of its run's folder."""
    reason: str | None
    """Why it failed or crashed."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.state != "running"


class MetricsOnTest(Record):
    """Metrics of the best trial on the test identities, at the epoch that gave its value."""

    epoch: int
    mean_average_precision: float = Field(alias="mAP")
    rank1: float


class BestTrial(SweepTrial):
    """The finished trial with the highest value."""

    value: float
    test: MetricsOnTest
    settings: tuple[SettingName, ...] = ()
    """All that makes the recipe this trial, as `--set` takes it; empty in studies of older versions."""


class SweepResult(StudyResult):
    """The result of a sweep."""

    kind: Literal["sweep"] = "sweep"
    seed: int
    space: tuple[SettingName, ...]
    """The searched settings, as `--search` takes them."""
    objectives: tuple[str, ...]
    unit: dict[str, str]
    """Unit of a trial's `value` and `cost`."""
    trials: tuple[SweepTrial, ...]
    best: BestTrial | None
    """None where no trial is finished."""
    pareto: tuple[SweepTrial, ...]
    """The finished trials that no other one beats in value without costing more."""
    importance: dict[SettingName, float]
    """Share of each setting in what sets the best trials apart (PED-ANOVA), largest first."""
    missing: int = 0
    """How many trials less than asked for came to an end; studies of the first version do not say."""
    wrong: dict[str, str] = Field(default_factory=dict)
    """Run of a trial that failed or crashed to the reason; studies of older versions do not say."""
    notes: tuple[str, ...] = ()
    """What is to be borne in mind of the trials; studies of older versions have none."""
    resumed: bool
    """Whether there were trials before this command."""
    storage: str
    """URL of the Optuna study, without its password."""

    @property
    def best_options(self) -> str:
        """The options of `train.py` that train the best trial, for a shell."""
        assert self.best is not None
        # Studies of older versions have the sampled values alone.
        sampled = [
            f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.best.values.items()
        ]
        settings = self.best.settings or sampled
        # Of a recipe's file, the study knows the name alone.
        recipe = self.recipe if self.recipe in BUILT_IN else f"{self.recipe}.yaml"
        return shlex.join(["--recipe", recipe, *(f"--set={setting}" for setting in settings)])

    @property
    def is_complete(self) -> bool:
        """Whether as many trials as asked for came to an end, and one of them is finished."""
        return not self.missing and self.best is not None


def find_best(trials: Sequence[SweepTrial]) -> SweepTrial | None:
    """The finished trial with the highest value; the first of several."""
    finished = [(trial.value, -trial.number, trial) for trial in trials if trial.value is not None]
    return max(finished)[-1] if finished else None


def find_front(trials: Sequence[SweepTrial]) -> list[SweepTrial]:
    """The finished trials that no other one beats in value without costing more, from cheap to expensive."""
    front = []
    highest = float("-inf")
    finished = [
        (trial.cost, -trial.value, trial.number, trial) for trial in trials if trial.value is not None
    ]
    for _, loss, _, trial in sorted(finished):
        if -loss > highest:
            front.append(trial)
            highest = -loss
    return front


def describe_values(values: Mapping[str, Any]) -> str:
    """A trial's values in one line: `model.sfm.perturbation=0.012 model.str.tokens=4`."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )
