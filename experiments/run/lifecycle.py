"""One run on Ray Train, from its config to its result; every script that trains calls `run`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from data_catalog.ray_session import ensure_ray
from data_catalog.storage import filesystems
from experiments.recipes import RECIPES, ROOT, ExperimentConfig, differences
from experiments.run import checkpoints, run_figures
from experiments.run.code_version import code_version, environment
from experiments.run.conclusion import conclude
from experiments.run.run_data import RunTables, clip_source
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import LoggedRunResult, RunError
from experiments.tracking.journal import Journal
from experiments.tracking.mlflow_logger import LoggedRun, Mirror, RunFacts, tracking_of
from experiments.tracking.polling import watching

if TYPE_CHECKING:
    from experiments.run.worker import Work

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Crashes of workers that a run survives, each time from its last checkpoint."""
LOOK_SECONDS = 0.5
SYNC_SECONDS = 5.0


def prepare_ray() -> None:
    """Set what a run needs of Ray in the environment; call before anything starts Ray."""
    # Workers must import this tree, also where another version is installed.
    path = os.environ.get("PYTHONPATH", "")
    if str(ROOT) not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), path]))
    # The default looks at the workers every two seconds, and a short epoch would wait for the look.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def run(
    config: ExperimentConfig,
    tables: RunTables,
    workspace: Path,
    tracking_uri: str | None = None,
    storage_uri: str | None = None,
    gpus_per_worker: float | None = None,
) -> LoggedRunResult:
    """Train and evaluate on Ray Train, or continue, or show what was finished before.

    Args:
        config: The run's settings, already checked against its tables.
        tables: What it reads.
        workspace: Folder of all runs.
        tracking_uri: MLflow server; None for $MLFLOW_TRACKING_URI or the workspace's embedded store.
        storage_uri: Folder or URI for checkpoints; None for the run's own folder.
        gpus_per_worker: None for one each where the cluster has GPUs; 0 trains on processors.

    Raises:
        RunError: The workers failed more often than a run survives, or another process trains this run.
    """
    folder = RunFolder.of(workspace, config, tables)
    with only_one(folder):
        done, trained = folder.is_finished, folder.trained
        _warn_of_other_code(folder)
        if not trained:
            begin(folder, tables)
        mirror = Mirror(tracking_of(tracking_uri, workspace), folder.path, workspace, facts(config, folder))
        try:
            if not trained:
                mirror.reopen()
                with _watched(folder, mirror, config.train.epochs):
                    fit(config, tables, folder, storage_uri, gpus_per_worker)
            if not done:
                conclude(folder)
        except BaseException as error:
            mirror.finish("FAILED" if isinstance(error, RunError) else "KILLED", folder.files)
            raise
        result = folder.result
        assert result is not None
        files = sorted(folder.pictures.glob("*.png")) or run_figures.draw_all(folder, result)
        mirror.finish("FINISHED", [*files, *folder.files])
        logged = LoggedRun(**dict(mirror.place), behind=mirror.behind)
        return LoggedRunResult(**dict(result) | {"reused": done, "mlflow": logged})


def begin(folder: RunFolder, tables: RunTables) -> None:
    """Note in the journal which code starts or continues a run, where, and what its data is warned of."""
    folder.journal.append("started", environment=environment(), **code_version())
    warnings = [
        {"check": finding.check, "message": finding.message, "samples": len(finding.rows)}
        for finding in tables.warnings
    ]
    folder.journal.append("checks", warnings=warnings)


def _warn_of_other_code(folder: RunFolder) -> None:
    """Say where the code changed since the run was started."""
    if others := other_digests(folder):
        what = "was finished" if folder.is_finished else "was begun"
        logger.warning(
            "run %s %s by other code (digest %s, now %s); move its folder away to train it anew",
            *(folder.name, what, ", ".join(others), code_version()["code.digest"]),
        )


def other_digests(folder: RunFolder) -> list[str]:
    """Of other code than this that started a run: its name knows settings and data, but not the code."""
    now = code_version()["code.digest"]
    started = [event["code.digest"] for event in folder.journal.read() if event["event"] == "started"]
    return [digest for digest in dict.fromkeys(started) if digest != now]


class BusyError(RunError):
    """Another process has the run."""


@contextmanager
def only_one(folder: RunFolder, patience_seconds: float = 0) -> Iterator[None]:
    """Keep a second process away from the run meanwhile.

    Args:
        folder: The run's.
        patience_seconds: How long to wait for another process that gets no further; as long as it does, it is
            waited for.

    Raises:
        BusyError: Another process has the run.
    """
    lock, known = FileLock(folder.path / ".lock"), len(folder.journal.read())
    while True:
        try:
            lock.acquire(timeout=patience_seconds)
            break
        except Timeout:
            reported = len(folder.journal.read())
            if reported == known:
                raise BusyError(
                    f"run {folder.name} is being trained by another process; wait for it, then run the same "
                    "command again"
                ) from None
            known = reported
    try:
        yield
    finally:
        lock.release()


def facts(config: ExperimentConfig, folder: RunFolder) -> RunFacts:
    """What MLflow is told of a run that has begun."""
    changed = changes(config)
    name = " ".join([config.recipe, *changed, f"seed={config.seed}"])
    started, checks = folder.journal.last("started"), folder.journal.last("checks") or {"warnings": []}
    assert started is not None
    machine = started["environment"]
    tags = {
        "stmi.run": folder.name,
        "stmi.recipe": config.recipe,
        "stmi.warnings": ", ".join(sorted({found["check"] for found in checks["warnings"]})) or "none",
        **{name: value for name, value in started.items() if name.startswith("code.")},
        **{
            f"environment.{fact}": str(machine[fact])
            for fact in ("python", "platform", "processors", "accelerators")
        },
        **{f"environment.{package}": number for package, number in machine["packages"].items()},
    }
    return RunFacts(config.recipe, name, config.flat(), tags, folder.digests)


def changes(config: ExperimentConfig) -> list[str]:
    """What a config changes in its recipe, as `name=value`, without the seed."""
    if config.recipe not in RECIPES:
        return []
    changed = differences(RECIPES[config.recipe](), config)
    return [f"{name}={value}" for name, (_, value) in changed.items() if name != "seed"]


def fit(
    config: ExperimentConfig,
    tables: RunTables,
    folder: RunFolder,
    storage_uri: str | None = None,
    gpus_per_worker: float | None = None,
) -> None:
    """Train on Ray Train's workers, and write what they report into the run's journal.

    Args:
        config: The run's settings.
        tables: What it reads.
        folder: Its folder.
        storage_uri: As in `run`.
        gpus_per_worker: As in `run`.

    Raises:
        RunError: The workers failed more often than a run survives, or the cluster has too few GPUs.
    """
    import ray  # noqa: PLC0415 - after `prepare_ray` has set what Ray reads from the environment
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.torch import TorchTrainer  # noqa: PLC0415

    from experiments.run.report_callback import JournalCallback  # noqa: PLC0415
    from experiments.run.worker import train_worker  # noqa: PLC0415

    prepare_ray()
    ensure_ray()
    place = folder.checkpoint_place(storage_uri)
    filesystem, path = filesystems.open_root(place)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"work": work_of(config, tables), "begun": folder.last_checkpoint},
        scaling_config=ScalingConfig(
            num_workers=config.train.workers, **worker_resources(config.train.workers, gpus_per_worker)
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=path.rpartition("/")[0],
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=checkpoints.KEPT),
            # The annotation is that of the older trainer, which is not the one that runs.
            callbacks=[JournalCallback(folder.journal, place)],  # type: ignore[list-item]
        ),
    )
    try:
        trainer.fit()
    except SystemExit:
        # Ray Train answers Ctrl-C by ending the process as if all were well.
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        folder.journal.append("failed", error=str(error))
        raise RunError(
            f"run {folder.name} failed: {error}\nIts journal is {folder.journal.path}; once the cause is "
            "removed, the same command continues from the last checkpoint"
        ) from error


def worker_resources(workers: int, gpus_per_worker: float | None) -> dict[str, Any]:
    """What each worker asks of the cluster, as `ScalingConfig` takes it.

    Raises:
        RunError: The cluster has fewer GPUs than that.
    """
    import ray  # noqa: PLC0415

    gpus = gpus_of_each(workers, gpus_per_worker)
    # More workers than processors share them: the result is the same, only later.
    processors = min(1.0, ray.cluster_resources().get("CPU", 1) / workers)
    return {"use_gpu": gpus > 0, "resources_per_worker": {"CPU": processors, "GPU": gpus}}


def gpus_of_each(workers: int, gpus_per_worker: float | None) -> float:
    """GPUs that each worker of a run gets.

    Args:
        workers: How many.
        gpus_per_worker: As in `run`.

    Raises:
        RunError: The cluster has fewer.
    """
    import ray  # noqa: PLC0415

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


def work_of(config: ExperimentConfig, tables: RunTables) -> "Work":
    """What the workers of a run are given."""
    from experiments.run.worker import Work  # noqa: PLC0415 - imports Ray

    return Work(config, tables.views, tables.captions, clip_source(config))


@contextmanager
def _watched(folder: RunFolder, mirror: Mirror, epochs: int) -> Iterator[None]:
    """Meanwhile show the journal as a progress bar, and mirror it to MLflow."""
    done = len(folder.journal.epochs())
    with (
        tqdm(total=epochs, initial=done, desc="starting workers", unit="epoch") as bar,
        watching(partial(_show, folder.journal, bar), LOOK_SECONDS),
        # In a thread of its own: a server that hangs must not stop the bar. The end is sent by `finish`.
        watching(mirror.sync, SYNC_SECONDS, to_the_end=False),
    ):
        yield


def _show(journal: Journal, bar: tqdm) -> None:
    events = journal.epochs()
    if len(events) <= bar.n:
        return
    bar.set_description("training", refresh=False)
    validated = [event["validation"]["U"]["mAP"] for event in events if "validation" in event]
    shown = {"loss": f"{events[-1]['losses']['total']:.3f}"}
    shown |= {"validation mAP": f"{validated[-1]:.1%}"} if validated else {}
    bar.set_postfix(shown, refresh=False)
    bar.update(len(events) - bar.n)
