"""One run as a trial of a study: the function that Ray Tune calls, and what it holds of the cluster."""

from typing import Any

import ray
from ray import tune

from data_catalog.errors import CatalogError, StorageAwayError
from data_catalog.storage.claims import LostClaimError
from experiments.experiment_config import parse
from experiments.run import lifecycle
from experiments.run.lifecycle import BusyError
from experiments.run.run_options import RunOptions
from experiments.run.run_result import InterruptedRunError, RunError, StoppedError
from experiments.run.run_tables import RunTables
from experiments.run.stop_request import STOP_FILE
from experiments.run.workers.ray_train import gpus_of_each
from experiments.tracking.journal import INTERRUPTED, Event
from stmi.errors import ClipFileError

PATIENCE_SECONDS = 900.0
"""How long a trial waits for another process that has its run and makes no progress. An epoch may take that
long. The other process may in turn wait for the CPU that this trial holds, so no trial waits forever."""
STORAGE_AWAY = "storage_away"
"""Reported by a trial that ends the experiment."""
HEAD_NODE = "node:__internal_head__"
"""A resource that every cluster has once, on its head node."""


def train_trial(parameters: dict[str, Any], *, tables: RunTables, options: RunOptions) -> None:
    """A Tune function trainable: train the run of a config, or continue it, or find it finished.

    Reports `epoch`, `step`, `loss` and, where the epoch was validated, `validation_mAP` (of the config's
    reported feature) after each epoch; at the end `finished`, or with the reason `stopped` where the run
    stopped itself, `interrupted` where its study was asked to stop, `failed` where its workers failed more
    often than a run survives.

    Args:
        parameters: `config`, an `ExperimentConfig` in its dumped form.
        tables: What the run reads.
        options: Without tracking, since the study logs its runs.

    Raises:
        BusyError: Another process has the run and makes no progress. The trial is tried again, and until then
            holds nothing that the other process may be waiting for.
    """
    config = parse(parameters["config"])
    if options.study is not None and options.study.has_file(STOP_FILE):
        # Tune goes on with the trials that have not begun.
        tune.report({INTERRUPTED: "before its start"})
        return
    feature = config.report.feature

    def report_epoch(facts: Event) -> None:
        if facts["event"] != "epoch":
            return
        reported = {name: facts[name] for name in ("epoch", "step")} | {"loss": facts["losses"]["total"]}
        if "validation" in facts:
            reported["validation_mAP"] = facts["validation"][feature]["mAP"]
        tune.report(reported)

    try:
        lifecycle.run(
            config,
            tables,
            options,
            threads=_own_cpus(),
            on_report=report_epoch,
            patience_seconds=PATIENCE_SECONDS,
        )
    except (BusyError, LostClaimError):
        raise
    except StoppedError as error:
        # The run would stop again, so the trial must not count as failed: Tune would repeat it.
        tune.report({"stopped": str(error)})
    except InterruptedRunError as error:
        tune.report({INTERRUPTED: str(error)})
    except StorageAwayError as error:
        # Every trial would wait for it in turn.
        tune.report({"failed": str(error), STORAGE_AWAY: True})
    except (RunError, CatalogError, ClipFileError) as error:
        # Ray Train has repeated it often enough, or files are damaged or cannot be written.
        tune.report({"failed": str(error)})
    else:
        tune.report({"finished": True})


class StopWithoutStorage(tune.Stopper):
    """Ends all trials once the storage was away for too long in one of them."""

    def __init__(self) -> None:
        self._is_away = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial is to end."""
        self._is_away = self._is_away or STORAGE_AWAY in result
        return self._is_away

    def stop_all(self) -> bool:
        """Whether all are to end."""
        return self._is_away


def trial_resources(workers: int, gpus_per_worker: float | None = None) -> tune.PlacementGroupFactory:
    """What a trial holds of the cluster.

    One worker is the trial itself: a CPU, and as much of a GPU as it gets. Several workers ask for their own
    through Ray Train; the trial that waits for them must hold nothing that they need, or trials that have all
    started would wait for each other forever.
    """
    if workers > 1:
        return tune.PlacementGroupFactory([{HEAD_NODE: 0.001}])
    gpus = gpus_of_each(workers, gpus_per_worker)
    return tune.PlacementGroupFactory([{"CPU": 1.0} | ({"GPU": gpus} if gpus else {})])


def concurrent_trials(workers: int, gpus_per_worker: float | None = None) -> int:
    """How many trials have room on the cluster at once."""
    resources = ray.cluster_resources()
    gpus = gpus_of_each(workers, gpus_per_worker)
    room = resources["GPU"] / gpus if gpus else resources.get("CPU", 1)
    return max(1, int(room // workers))


def _own_cpus() -> int:
    """CPUs that the cluster gave to this trial."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
