"""The result of a run, as `result.json` stores it and as the scripts print it."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field

from data_catalog.interrupts import has_failed
from data_catalog.records import Record
from experiments.tracking.mlflow_store import LoggedRun, MlflowState

MetricName = Literal["mAP", "rank1", "rank5", "rank10"]
METRICS: tuple[MetricName, ...] = ("mAP", "rank1", "rank5", "rank10")
FEATURE_NAMES = {
    "U": "U, fused",
    "G": "G, class tokens",
    "T": "T, text alone",
    "RGB": "RGB alone",
    "NIR": "NIR alone",
    "TIR": "TIR alone",
    "GTTT": "G and three times T",
}


class RunError(RuntimeError):
    """A run that could not be finished; says why and how to go on."""


class FailedRunError(RunError):
    """A run, or an evaluation, that began and failed: nothing in its command line was wrong."""


class StoppedError(FailedRunError):
    """A run that stopped itself, and would again: its loss diverged, or its data cannot be scored."""


class InterruptedRunError(RunError):
    """A run that was asked to stop, and has stored a checkpoint from which the same command continues."""


def status_after(error: BaseException) -> str:
    """MLflow's status of a run or study that an error ends: KILLED where it was asked to end, else FAILED."""
    is_end = not isinstance(error, Exception) and not has_failed()
    was_asked = isinstance(error, InterruptedRunError) or is_end
    return "KILLED" if was_asked else "FAILED"


class FeatureMetrics(Record):
    """Retrieval metrics of one feature; all are fractions."""

    mean_average_precision: float = Field(alias="mAP")
    rank1: float
    """Share of queries with a match at rank 1; `rank5` and `rank10` likewise."""
    rank5: float
    rank10: float
    cmc: tuple[float, ...]
    """Share of queries with a match among the first k, from k = 1 on."""

    def value(self, metric: MetricName) -> float:
        """The metric with this name in JSON and in the paper's tables."""
        return self.mean_average_precision if metric == "mAP" else getattr(self, metric)


ALONE = 0.99
"""Share of the tokens of images that meet no other token, from which on CHI mixes nothing."""
ALIKE = 0.95
"""Density above which all hyperedges of a sample hold nearly the same nodes."""
DEGENERATE = "chi-degenerate"


class Hyperedges(Record):
    """What the hyperedges of CHI are like, means over the samples of a split."""

    size: float
    """Nodes in a hyperedge."""
    density: float
    """Share of all pairs of node and hyperedge in which the node belongs to the hyperedge."""
    alone: float
    """Share of the tokens of images that are alone in their hyperedge."""
    across: float
    """Share of the hyperedges that hold tokens of the images of more than one modality."""
    by_text: float
    """Share of the hyperedges that join modalities by copies of the text token alone."""

    def describe(self) -> str:
        """The numbers in one clause."""
        return (
            f"a hyperedge holds {self.size:.1f} nodes (density {self.density:.3f}), {self.alone:.0%} of the "
            f"tokens of images are alone in theirs, {self.across:.0%} of the hyperedges join images of "
            f"modalities, {self.by_text:.0%} do by the text alone"
        )

    @property
    def warning(self) -> str | None:
        """What is wrong with them, with the numbers, or None."""
        if self.alone >= ALONE:
            wrong = "mixes no tokens, since each is alone in its hyperedge"
        elif self.density > ALIKE:
            wrong = "adds the same mean to every token, since each hyperedge holds nearly all"
        else:
            return None
        return f"{DEGENERATE}: CHI {wrong}: {self.describe()}"


class EpochMetrics(Record):
    """Test metrics of one epoch."""

    epoch: int
    """From 1."""
    metrics: dict[str, FeatureMetrics]
    """By feature."""


class EpochChoices(Record):
    """The epochs that a run may report; only epochs that were evaluated count (`train.validate_every`)."""

    last: EpochMetrics
    validation: EpochMetrics | None
    """The best on validation identities; None where the data set has none."""
    best_on_test: EpochMetrics
    """The best on test identities, which flatters."""

    def get(self, choice: str) -> EpochMetrics | None:
        """The epoch of a choice: `last`, `validation` or `best_on_test`."""
        return getattr(self, choice)


class ReportedEpoch(Record):
    """What the config calls for: one feature at one epoch."""

    feature: str
    chosen_by: str
    """Which of the choices it is; `last` where the config's choice is impossible."""
    epoch: int
    metrics: FeatureMetrics


class DatasetMetrics(Record):
    """The metrics of one of the data sets of a run, among its own gallery."""

    metrics: dict[str, FeatureMetrics]
    """Metrics of the last epoch on its test identities, by feature."""
    untrained: FeatureMetrics
    """Metrics of feature U before training."""
    validation: dict[str, FeatureMetrics] | None
    """Metrics of the last validated epoch, by feature; None where it has no validation identities."""
    reported: FeatureMetrics
    """Metrics of the feature and the epoch that the run reports."""


class InitialFacts(Record):
    """The weights with which a run began, beside those of CLIP: `train.py --init`."""

    source: str
    """Folder, URI or file."""
    digest: str
    """Digest of the weights that were taken."""
    taken: dict[str, int]
    """Part of the model to how many of its weights were taken."""
    left: dict[str, str]
    """Weight of the model that was not taken, to the reason."""
    unused: tuple[str, ...]
    """Weights of the source that the model does not have."""

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Self:
        """From the journal's event."""
        return cls(**{name: event[name] for name in cls.model_fields})

    def describe(self) -> str:
        """What was taken and what was not, in lines."""
        taken = ", ".join(f"{count} of {part}" for part, count in self.taken.items())
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        lines = [f"begins with {self.source}: took {taken}"]
        lines += [f"not taken, {reason}: {', '.join(names)}" for reason, names in reasons.items()]
        return "\n".join([*lines, *([f"not used: {', '.join(self.unused)}"] if self.unused else [])])


class RunResult(Record):
    """The result of a finished run (`result.json`)."""

    run: str
    """Name of the run's folder."""
    status: Literal["finished"] = "finished"
    resumed: bool
    """Whether the training was interrupted and continued from a checkpoint."""
    reused: bool = False
    """Whether the run was finished before this command."""
    folder: str
    checkpoint: str
    """Folder or URI of the last checkpoint."""
    config: dict[str, Any]
    """All settings."""
    metrics: dict[str, FeatureMetrics]
    """Metrics of the last epoch on the test identities, by feature."""
    untrained: FeatureMetrics
    """Metrics of feature U before training."""
    validation: dict[str, FeatureMetrics] | None = None
    """Metrics of the last epoch that was validated, by feature."""
    choices: EpochChoices | None = None
    """None in a run that an older version finished; so is `reported`."""
    reported: ReportedEpoch | None = None
    datasets: dict[str, DatasetMetrics] = Field(default_factory=dict)
    """Of a run on several data sets, the metrics of each one that has a test split, by name. The first of
    them is the one that `metrics`, `validation`, `choices` and `reported` are of. Empty for one data set."""
    losses: tuple[dict[str, int | float], ...]
    """Mean losses by epoch; `epoch` counts from 1."""
    losses_without_gradient: tuple[dict[str, int | float], ...] = ()
    """Those of them that train nothing; they are not among `losses`, but in `total` with their weights."""
    hyperedges: dict[str, Hyperedges] = Field(default_factory=dict)
    """By split: `train` of the last epoch, `validation` of the last one that was validated, `test`; of data
    sets beside the first one as `test/NAME`. Empty without a hypergraph, and in runs of older versions."""
    seconds: dict[str, float]
    """Seconds by part, and `share_in_steps_and_evaluation`."""
    tables: dict[str, str]
    """Table name to digest."""
    initial: InitialFacts | None = None
    """The weights that it began with; None for those of CLIP alone."""
    notes: tuple[str, ...] = ()
    """What the checks of the data warned of when the run began, that a step ran out of memory, and what is
    wrong with its hyperedges; none in a run of an older version."""


class LoggedRunResult(RunResult):
    """A run's result, and where MLflow has the run."""

    mlflow: LoggedRun | MlflowState | None = None
