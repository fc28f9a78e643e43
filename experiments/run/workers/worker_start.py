"""How Ray Train's workers start: within a time limit, and with an event in the journal where they do not.

Light to import, as `experiments.run.workers.worker`: the controller imports this file.
"""

import threading
from typing import Any

from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from data_catalog.ray_failures import describe_failure
from data_catalog.ray_session import START_SECONDS, why_silent
from experiments.run.run_result import RunError
from experiments.tracking.journal import Journal


class PromptWorkerGroup(WorkerGroup):
    """A group of workers that have to start within `start_seconds`; Ray Train would wait without end."""

    start_seconds = START_SECONDS

    def _create_workers(
        self, num_workers: int, placement_group: PlacementGroup, *given: Any, **named: Any
    ) -> list[Worker]:
        nodes = placement_group_table(placement_group)["bundles_to_node_id"].values()
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            # It ends the processes that were to start in it, and so the waiting for them.
            remove_placement_group(placement_group)

        timer = threading.Timer(self.start_seconds, give_up)
        timer.start()
        try:
            return super()._create_workers(num_workers, placement_group, *given, **named)
        except WorkerGroupStartupFailedError:
            if is_late.is_set():
                raise RunError(why_silent(set(nodes), self.start_seconds)) from None
            raise
        finally:
            timer.cancel()


class StartCallback(ControllerCallback):
    """Gives workers their time limit, and notes each of their starts that failed.

    Args:
        journal: Where to note it.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def after_controller_start(self, train_run_context: Any) -> None:
        """Let this process, which is the controller's, start workers within the time limit."""
        TrainController.worker_group_cls = PromptWorkerGroup

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Note why workers did not start where they are started again; the last failure ends the run."""
        if isinstance(current_state, ReschedulingState):
            error = current_state.training_failed_error
            self.journal.append(
                "worker_failed",
                reasons={"start": describe_failure(error)},
                errors={"start": repr(error)[:2000]},
            )
