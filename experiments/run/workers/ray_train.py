"""Training on Ray Train's workers: what they get of the cluster, and what is done with their reports."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from data_catalog.environment import prepare_environment
from data_catalog.errors import NotWritableError, StorageAwayError, name_first
from data_catalog.ray_failures import MAX_FAILURES, describe_failure
from data_catalog.ray_session import ensure_ray, living_nodes
from data_catalog.storage import filesystems
from data_catalog.storage.node_probe import NeededFolder, check_nodes
from experiments.recipes import ROOT
from experiments.run.elastic_workers import find_sizes
from experiments.run.micro_batches import StepMemoryError
from experiments.run.run_folder import KEPT_CHECKPOINTS, RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import FailedRunError, RunError
from experiments.run.workers.training_input import TrainingInput

MAX_PREEMPTIONS = 30
"""How often a run goes on after a cloud has taken its machines back, without a checkpoint in between."""
RESIZE_SECONDS = 20.0
"""How often a run whose number of workers may change looks for room for more."""
ROOM_SECONDS = "20"
"""How long it waits for the workers that it has found room for: a node may be gone before Ray sees it."""
MEMORY_REMEDY = "lower batch.size or train.evaluation_batch, or use more nodes or ones with more memory"


def prepare_ray() -> None:
    """Set what a run needs of Ray in the environment; call before anything starts Ray."""
    # Workers must import this tree, also where another version is installed.
    path = os.environ.get("PYTHONPATH", "")
    if str(ROOT) not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), path]))
    prepare_environment()
    if _is_own_ray():
        # No cloud takes this machine back, and a process less is started.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Every worker would warn that PyTorch looks for unused parameters; `distribute` says why it does.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def start_ray(workers: int, gpus_per_worker: float | None = None) -> None:
    """Join or start the Ray session of a study.

    Args:
        workers: Workers of each trial.
        gpus_per_worker: As in `RunOptions`.

    Raises:
        RunError: The cluster has too few GPUs for a trial.
    """
    prepare_ray()
    # Ray Train frees the workers of a stopped trial through the dashboard's API, or never.
    ensure_ray(include_dashboard=workers > 1)
    gpus_of_each(workers, gpus_per_worker)


def check_cluster(folders: Sequence[NeededFolder]) -> None:
    """Where a cluster is named, make sure that all its nodes reach what workers need.

    Raises:
        data_catalog.errors.CatalogError: A node does not.
    """
    if _is_own_ray():
        return
    prepare_ray()
    ensure_ray()
    check_nodes(folders)


def _is_own_ray() -> bool:
    """Whether no cluster is named, so that Ray is started on this machine."""
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def train_on_workers(given: TrainingInput, folder: RunFolder, options: RunOptions) -> None:
    """Train on Ray Train's workers, and write what they report into the run's journal.

    Args:
        given: What the workers are given.
        folder: The run's.
        options: Where checkpoints go, and what each worker gets.

    Raises:
        FailedRunError: The workers failed more often than a run survives.
        RunError: The cluster has too few GPUs.
        StepMemoryError: One of them ran out of memory in a step.
        StorageAwayError: The storage was away for too long.
    """
    import ray  # noqa: PLC0415 - after `prepare_ray` has set what Ray reads from the environment
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator  # noqa: PLC0415
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME  # noqa: PLC0415

    from experiments.run.workers.trainer import Trainer  # noqa: PLC0415
    from experiments.run.workers.worker import JournalCallback, train_worker  # noqa: PLC0415
    from experiments.run.workers.worker_start import StartCallback  # noqa: PLC0415

    prepare_ray()
    ensure_ray()
    # Ray Train's controller would start this actor, too, and do nothing until it is there.
    default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()
    nodes = living_nodes()
    workers, fewest = given.config.train.workers, options.fewest_workers
    if fewest is not None:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = ROOM_SECONDS
    filesystem, path = filesystems.open_root(folder.checkpoints.location)
    # Ray Train would go on from the newest checkpoint of its own record, sound or not, and end where one of
    # them is gone; `given` has the newest sound one.
    folder.checkpoints.delete_file(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    trainer = Trainer(
        train_worker,
        train_loop_config={"input": given},
        # The annotations are those of the older trainer, which is not the one that runs.
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=workers if fewest is None else (fewest, workers),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            **worker_resources(workers, options.gpus_per_worker, fewest),
        ),
        journal=folder.journal,
        sizes=None if fewest is None else find_sizes(given.config, fewest),
        run_config=RunConfig(
            name=folder.name,
            storage_path=path.rpartition("/")[0],
            storage_filesystem=filesystem,
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=MAX_FAILURES,
                controller_failure_limit=MAX_FAILURES,
                max_preemption_failures=MAX_PREEMPTIONS,
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=[
                JournalCallback(folder.journal, folder.checkpoints if folder.storage else None),  # type: ignore[list-item]
                StartCallback(folder.journal),  # type: ignore[list-item]
            ],
        ),
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        trainer.abort()
        raise
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raised = getattr(error, "controller_failure", error)
        if isinstance(raised, StepMemoryError | StorageAwayError):
            raise raised from None
        reason = describe_failure(error, MEMORY_REMEDY)
        if lost := [nodes[node] for node in nodes.keys() - living_nodes().keys()]:
            reason += f" (since the run began the cluster lost {name_first(sorted(lost))})"
        # The disk of the journal may be full, which is the reason then.
        with suppress(NotWritableError):
            folder.journal.append("failed", error=reason, detail=str(error))
        raise FailedRunError(
            f"run {folder.name} failed: {reason}. Its journal, {folder.journal.location}, has the details; "
            "once the cause is removed, the same command continues from the last checkpoint"
        ) from error


def worker_resources(
    workers: int, gpus_per_worker: float | None, fewest: int | None = None
) -> dict[str, Any]:
    """What each worker asks of the cluster, as `ScalingConfig` takes it.

    Args:
        workers: Number of workers.
        gpus_per_worker: As in `RunOptions`.
        fewest: With how many the run still goes on, as in `RunOptions`.

    Raises:
        RunError: The cluster has fewer GPUs than that.
    """
    import ray  # noqa: PLC0415 - after `prepare_ray` has set what Ray reads from the environment

    gpus = gpus_of_each(fewest or workers, gpus_per_worker)
    if fewest is not None:
        # Room for another worker is room for a whole one: with parts of CPUs one node would hold all.
        return {"use_gpu": gpus > 0, "resources_per_worker": {"CPU": 1.0, "GPU": gpus}}
    # More workers than CPUs share them: the result is the same, only later.
    cpus = min(1.0, ray.cluster_resources().get("CPU", 1) / workers)
    return {"use_gpu": gpus > 0, "resources_per_worker": {"CPU": cpus, "GPU": gpus}}


def gpus_of_each(workers: int, gpus_per_worker: float | None) -> float:
    """GPUs that each worker of a run gets.

    Args:
        workers: Number of workers.
        gpus_per_worker: As in `RunOptions`.

    Raises:
        RunError: The cluster has fewer.
    """
    import ray  # noqa: PLC0415 - after `prepare_ray` has set what Ray reads from the environment

    there = ray.cluster_resources().get("GPU", 0)
    gpus = float(there > 0) if gpus_per_worker is None else gpus_per_worker
    machines = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    # A worker's share is of one machine: three of 0.6 do not fit two GPUs of one each.
    if gpus and workers > sum(_shares(machine, gpus) for machine in machines):
        raise RunError(
            f"train.workers={workers} with {gpus:g} GPUs each, but the cluster has {there:g} GPUs; ask for "
            "fewer workers, for a part of a GPU each (--gpus-per-worker 0.5), or for none (0)"
        )
    return gpus


def _shares(machine_gpus: float, gpus: float) -> int:
    """How many workers with so many GPUs each a machine holds."""
    return int(machine_gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(machine_gpus / gpus)
