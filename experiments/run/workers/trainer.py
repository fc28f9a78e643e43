"""Ray Train's trainer, which leaves Ctrl-C to this project, and counts failures without progress alone."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from data_catalog.errors import CatalogError
from experiments.tracking.journal import Journal

ABORT_SECONDS = 20.0
"""How long the end of the workers is waited for."""


class FittingScalingPolicy(ElasticScalingPolicy):
    """Starts no other number of workers than those that the global batch can be shared among.

    Args:
        scaling_config: With the fewest and the most.
        sizes: These numbers, ascending.
    """

    def __init__(self, scaling_config: Any, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self.sizes = sizes

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((size for size in self.sizes if size <= room), default=0)


class ProgressFailurePolicy(DefaultFailurePolicy):
    """Counts the failures since the last checkpoint: a run that makes progress may lose workers for weeks.

    Args:
        failure_config: How often each kind is survived.
        journal: The run's.
    """

    def __init__(self, failure_config: Any, journal: Journal) -> None:
        super().__init__(failure_config)
        self.journal = journal
        self._checkpoint: str | None = None

    def make_decision(self, training_failed_error: Any) -> Any:
        """As in `FailurePolicy`."""
        newest = self._newest_checkpoint()
        if newest != self._checkpoint:
            self._checkpoint = newest
            self._worker_group_failures = self._controller_failures = self._preemption_failures = 0
        return super().make_decision(training_failed_error)

    def _newest_checkpoint(self) -> str | None:
        try:
            stored = [event["checkpoint"] for event in self.journal.read() if event.get("checkpoint")]
        except CatalogError:
            # The storage of the journal is away, and may be why the workers failed: no progress.
            return self._checkpoint
        return stored[-1] if stored else None


class Trainer(TorchTrainer):
    """Ends its workers when it is told to; Ray Train's own answer to Ctrl-C is to end as if all were well.

    Args:
        *given: As in `TorchTrainer`; so are the named ones.
        journal: The run's.
        sizes: Numbers of workers that the global batch can be shared among, ascending; None where there is
            always the same number.
        **named: As above.
    """

    _controller: Any = None

    def __init__(self, *given: Any, journal: Journal, sizes: Sequence[int] | None, **named: Any) -> None:
        super().__init__(*given, **named)
        self._journal = journal
        self._sizes = sizes

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        given["failure_policy"] = ProgressFailurePolicy(self.run_config.failure_config, self._journal)
        if self._sizes is not None:
            given["scaling_policy"] = FittingScalingPolicy(self.scaling_config, self._sizes)
        return super()._initialize_and_run_controller(**given)  # type: ignore[misc]

    def _create_default_callbacks(self) -> list[Any]:
        default = super()._create_default_callbacks()  # type: ignore[misc]
        # It would start an actor that hands out data sets, and workers read their rows themselves.
        return [callback for callback in default if not isinstance(callback, DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the workers, and their controller, which writes the journal; without a word where they have."""
        if self._controller is None:
            return
        try:
            ray.get(self._controller.abort.remote(), timeout=ABORT_SECONDS)
        except ray.exceptions.RayError:
            # The controller ends before it can answer; one that hangs is killed with this process.
            return
