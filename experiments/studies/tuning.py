"""How Ray Tune trains the runs of a study: as many at once as fit on the cluster."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from data_catalog.errors import name_first
from data_catalog.ray_failures import MAX_FAILURES, describe_failure
from data_catalog.ray_session import living_nodes
from experiments.run.run_folder import RESULT_FILE, RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import InterruptedRunError, RunError
from experiments.run.run_tables import RunTables
from experiments.run.stop_request import STOP_FILE
from experiments.run.workers.ray_train import MEMORY_REMEDY
from experiments.studies.study_folder import StudyFolder
from experiments.studies.study_logger import StudyRun

STARTS = MAX_FAILURES + 1
"""How often trials are started at most where nodes are lost."""

NODE_LOSS_SECONDS = 30.0
"""How long Ray may take to see that a node is gone whose process does not answer any more."""
SHARED_DISK_SECONDS = 3.0
"""How long another node's file may take to appear on a shared disk, which caches the lists of its folders."""

TRIAL_FOLDER = "trial_"
"""Before the id of a trial: its folder in Tune's state."""

if TYPE_CHECKING:
    from ray import tune


class NodeLostError(Exception):
    """The process of a trial was lost while the cluster lost a node; the trial is to be started again.

    Tune repeats a trial whose process dies, but gives up at once where it has handed the trial to a process
    that it kept for reuse on the lost node.
    """


def train_runs(
    runs: Sequence[StudyRun], tables: RunTables, options: RunOptions, study: StudyFolder
) -> dict[str, str]:
    """Train the runs of a study as trials of one Tune experiment.

    Args:
        runs: With the same number of workers and the same tables.
        tables: What they read.
        options: Where they are kept, and what their workers get.
        study: Folder of the study.

    Returns:
        Run to the reason why it could not be finished; all others are finished.
    """
    from ray import tune  # noqa: PLC0415 - after `start_ray` has set what Ray reads from the environment

    waiting = [run for run in runs if not run.folder.is_finished]
    (workers,) = {run.folder.config.train.workers for run in waiting}
    endings: dict[str, str | None] = {}
    for _ in range(STARTS):
        configs = tune.grid_search([run.folder.config.model_dump(mode="json") for run in waiting])
        outcomes = tune_trials(tables, options, study, workers, param_space={"config": configs})
        ended = list(zip(waiting, outcomes, strict=True))
        endings |= {run.folder.name: _reason(run.folder, outcome, study) for run, outcome in ended}
        waiting = [run for run, outcome in ended if isinstance(outcome.error, NodeLostError)]
        if not waiting:
            break
    return {run: reason for run, reason in endings.items() if reason is not None}


def _reason(run: RunFolder, outcome: "tune.Result", study: StudyFolder) -> str | None:
    """Why a run was not finished, or None."""
    if outcome.error is not None:
        crash = describe_failure(outcome.error, MEMORY_REMEDY)
        # A process that was killed could not write into the journal of its run.
        study.journal.append("failed", run=run.name, error=crash)
        return crash
    if outcome.metrics and (ends := outcome.metrics.keys() & {"stopped", "failed"}):
        return str(outcome.metrics[ends.pop()])
    if "finished" not in (outcome.metrics or {}):
        return "it was ended with another run, which had waited too long for the storage"
    return lost_reason(run, RESULT_FILE, outcome.metrics or {})


def lost_reason(run: RunFolder, name: str, report: Mapping[str, Any]) -> str | None:
    """Why this process does not find a file that a trial has written into the folder of its run, or None.

    Args:
        run: The folder.
        name: Name of the file.
        report: The last one of the trial; Tune adds the node on which it ran.
    """
    deadline = time.monotonic() + (SHARED_DISK_SECONDS if run.is_local else 0.0)
    while name not in run.list_files():
        if time.monotonic() > deadline:
            node = f"{report.get('hostname', 'unknown')} ({report.get('node_ip', 'unknown')})"
            return (
                f"it was trained on node {node}, but {run.file(name)} is not there as this machine sees it: "
                "the nodes do not share the workspace. Name one that all of them reach, such as --workspace "
                "s3://bucket/runs or a folder of a shared disk, and run the same command again"
            )
        time.sleep(0.2)
    return None


def cannot_go_on(what: str, reason: str) -> RunError:
    """The error of a study that ends before its trials have."""
    return RunError(
        f"{what} cannot go on ({reason}); what was measured is kept, so run the same command again once the "
        "cause is removed"
    )


def trial_id(outcome: "tune.Result") -> str:
    """Tune's id of the trial with this outcome."""
    return PurePath(outcome.path).name.removeprefix(TRIAL_FOLDER)


def tune_trials(
    tables: RunTables,
    options: RunOptions,
    study: StudyFolder,
    workers: int,
    *,
    concurrent: int | None = None,
    param_space: dict[str, Any] | None = None,
    **search: Any,
) -> "list[tune.Result]":
    """Run the trials of a study as one Tune experiment.

    Args:
        tables: What they read.
        options: Where their runs are kept, and what their workers get.
        study: Folder of the study.
        workers: Workers of each trial.
        concurrent: Trials at once; None for as many as there is room for.
        param_space: The parameters of `train_trial`.
        search: Where trials are not known beforehand, `search_alg` and `scheduler`.

    Returns:
        The outcome of each trial.

    Raises:
        RunError: Tune failed, or what chooses its trials.
        InterruptedRunError: The study was asked to stop.
    """
    import ray  # noqa: PLC0415 - after `start_ray` has set what Ray reads from the environment
    from ray import tune  # noqa: PLC0415
    from ray.tune.execution import class_cache  # noqa: PLC0415

    from experiments.studies.trial import (  # noqa: PLC0415
        StopWithoutStorage,
        concurrent_trials,
        train_trial,
        trial_resources,
    )

    nodes = living_nodes()
    # Tune would give trials this process's keys of object storage, which Ray then writes into its logs; each
    # node has keys, or a role, of its own.
    passed = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = passed
    trainable = tune.with_parameters(train_trial, tables=tables, options=options.of_study(study))
    # Trials find their own journals and checkpoints again, so Tune's state is for this start only.
    with nullcontext(study.path) if study.is_local else tempfile.TemporaryDirectory() as state:
        tuner = tune.Tuner(
            tune.with_resources(trainable, trial_resources(workers, options.gpus_per_worker)),
            param_space=param_space,
            tune_config=tune.TuneConfig(
                num_samples=-1 if search else 1,
                max_concurrent_trials=concurrent or concurrent_trials(workers, options.gpus_per_worker),
                # A process that waits for workers of Ray Train is not free for another trial until they end.
                reuse_actors=workers == 1,
                trial_dirname_creator=lambda trial: f"{TRIAL_FOLDER}{trial.trial_id}",
                **search,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str(state),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                # A searcher needs the storage itself, and ends with it.
                stop=None if search else StopWithoutStorage(),
                verbose=0,
            ),
        )
        try:
            grid = tuner.fit()
        except (tune.TuneError, ray.exceptions.RayError) as error:
            # Where the storage is away, this says so, and where not, the error is another one.
            study.list_files()
            raise cannot_go_on(f"study {study.name}", describe_failure(error, MEMORY_REMEDY)) from error
    outcomes = [grid[number] for number in range(len(grid))]
    if study.has_file(STOP_FILE):
        raise InterruptedRunError(
            f"study {study.name} was stopped by SIGTERM; the runs that it was training have a checkpoint of "
            "their last step; run the same command again to continue"
        )
    _mark_lost(outcomes, nodes)
    return outcomes


def _mark_lost(outcomes: "Sequence[tune.Result]", nodes: Mapping[str, str]) -> None:
    """Say of each trial whose process died that a node was lost, if one of these nodes was."""
    from ray.exceptions import RayActorError  # noqa: PLC0415 - as in `tune_trials`

    died = [outcome for outcome in outcomes if isinstance(outcome.error, RayActorError)]
    # Ray may know that a process does not answer before it knows that its node is gone.
    end = time.monotonic() + NODE_LOSS_SECONDS
    while died and not (lost := nodes.keys() - living_nodes().keys()):
        if time.monotonic() >= end:
            return
        time.sleep(0.2)
    for outcome in died:
        names = name_first(sorted(nodes[node] for node in lost))
        outcome.error = NodeLostError(
            f"its process was lost while the cluster lost {names}; see `ray status`, and run the same "
            "command again once the node is back, or without it"
        )
