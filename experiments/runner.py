"""One run on Ray Train, from its config to its result; every script that trains calls `run`."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from data_catalog.building import ensure_ray
from experiments import pictures
from experiments.datasets import RunTables, clip_source
from experiments.journal import Journal
from experiments.provenance import code_version, environment
from experiments.recipes import RECIPES, ROOT, ExperimentConfig, ReportConfig, differences
from experiments.run_folder import RunFolder
from experiments.tracking import Mirror, RunFacts, local_store

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Crashes of workers that a run survives, each time from its last checkpoint."""
LOOK_SECONDS = 0.5
SYNC_SECONDS = 5.0


class RunError(RuntimeError):
    """A run that could not be finished; says why and how to go on."""


def prepare_ray() -> None:
    """Set what a run needs of Ray in the environment; call before anything starts Ray."""
    # Workers must import this tree, also where another version is installed.
    path = os.environ.get("PYTHONPATH", "")
    if str(ROOT) not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), path]))
    # The default looks at the workers every two seconds, and a short epoch would wait for the look.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def run(
    config: ExperimentConfig, tables: RunTables, workspace: Path, tracking_uri: str | None = None
) -> dict[str, Any]:
    """Train and evaluate, or continue, or show what was finished before.

    Args:
        config: The run's settings, already checked against its tables.
        tables: What it reads.
        workspace: Folder of all runs.
        tracking_uri: MLflow server; None for $MLFLOW_TRACKING_URI or the workspace's embedded store.

    Returns:
        The result, JSON values only: `run`, `status`, `resumed`, `reused`, `metrics` (of the last epoch, by
        feature), `choices` (epoch and metrics of the last, the one chosen on validation, the best on test),
        `reported` (the one that the config calls for), `untrained` (of U), `validation`,
        `losses` (by epoch), `seconds` (by part), `tables`, `mlflow`,
        `folder`.

    Raises:
        RunError: The workers failed more often than a run survives, or another process trains this run.
    """
    folder = RunFolder.of(workspace, config, tables)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local_store(workspace)
    with _only_one(folder):
        _warn_of_other_code(folder)
        finished = folder.result
        if finished is None:
            folder.journal.append("started", environment=environment(), **code_version())
        mirror = Mirror(uri, folder.path, workspace, _facts(config, folder))
        if finished is not None:
            _finish(folder, finished, mirror)
            return finished | {"reused": True}
        return _train(config, tables, folder, mirror)


def _warn_of_other_code(folder: RunFolder) -> None:
    """The run's name knows its settings and data, not the code: say where that changed since."""
    started, now = folder.journal.last("started"), code_version()["code.digest"]
    if started is not None and started["code.digest"] != now:
        what = "was finished" if folder.result else "was begun"
        logger.warning(
            "run %s %s by other code (digest %s, now %s); move its folder away to train it anew",
            *(folder.name, what, started["code.digest"], now),
        )


@contextmanager
def _only_one(folder: RunFolder) -> Iterator[None]:
    """Keep a second process away from the run meanwhile."""
    try:
        with FileLock(folder.path / ".lock", timeout=0):
            yield
    except Timeout:
        raise RunError(f"run {folder.name} is being trained by another process; wait for it") from None


def _train(config: ExperimentConfig, tables: RunTables, folder: RunFolder, mirror: Mirror) -> dict[str, Any]:
    mirror.reopen()
    try:
        with _watched(folder, mirror, config.train.epochs):
            _fit(config, tables, folder)
        result = _result(folder, mirror)
    except RunError:
        mirror.finish("FAILED", folder.files)
        raise
    folder.journal.append("finished", seconds=result["seconds"])
    folder.write_result(result)
    _finish(folder, result, mirror)
    return result


def _finish(folder: RunFolder, result: dict[str, Any], mirror: Mirror) -> None:
    """Draw the pictures and close the run in MLflow; where both were done before, do nothing."""
    files = sorted(folder.pictures.glob("*.png")) or pictures.draw_all(folder, result)
    mirror.finish("FINISHED", [*files, *folder.files])


def _facts(config: ExperimentConfig, folder: RunFolder) -> RunFacts:
    changed = changes(config)
    name = " ".join([config.recipe, *changed, f"seed={config.seed}"])
    started = folder.journal.last("started")
    assert started is not None
    machine = started["environment"]
    tags = {
        "stmi.run": folder.name,
        "stmi.recipe": config.recipe,
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


def _fit(config: ExperimentConfig, tables: RunTables, folder: RunFolder) -> None:
    import ray  # noqa: PLC0415 - after `prepare_ray` has set what Ray reads from the environment
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.torch import TorchTrainer  # noqa: PLC0415

    from experiments.report_callback import JournalCallback  # noqa: PLC0415
    from experiments.training_loop import train_worker  # noqa: PLC0415

    prepare_ray()
    ensure_ray()
    workers = config.train.workers
    resources = ray.cluster_resources()
    accelerators = int(resources.get("GPU", 0))
    if 0 < accelerators < workers:
        raise RunError(
            f"train.workers={workers}, but the cluster has {accelerators} GPUs; ask for at most as many "
            "workers, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on processors"
        )
    use_gpu = accelerators > 0
    # More workers than processors share them: the result is the same, only later.
    processors = min(1.0, resources.get("CPU", 1) / workers)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config,
            "views": tables.views,
            "captions": tables.captions,
            "clip": clip_source(config),
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": processors, "GPU": int(use_gpu)},
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.path.parent),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # The annotation is that of the older trainer, which is not the one that runs.
            callbacks=[JournalCallback(folder.journal)],  # type: ignore[list-item]
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


@contextmanager
def _watched(folder: RunFolder, mirror: Mirror, epochs: int) -> Iterator[None]:
    """Meanwhile show the journal as a progress bar, and mirror it to MLflow."""
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(folder.journal, mirror, epochs, stop), daemon=True)
    watch.start()
    try:
        yield
    finally:
        stop.set()
        watch.join()


def _watch(journal: Journal, mirror: Mirror, epochs: int, stop: threading.Event) -> None:
    done = journal.epochs()
    synced = time.monotonic() - SYNC_SECONDS
    with tqdm(total=epochs, initial=len(done), desc="starting workers", unit="epoch") as bar:
        while True:
            finished = stop.wait(LOOK_SECONDS)
            events = journal.epochs()
            if len(events) > bar.n:
                bar.set_description("training", refresh=False)
                validated = [event["validation"]["U"]["mAP"] for event in events if "validation" in event]
                shown = {"loss": f"{events[-1]['losses']['total']:.3f}"}
                shown |= {"validation mAP": f"{validated[-1]:.1%}"} if validated else {}
                bar.set_postfix(shown, refresh=False)
                bar.update(len(events) - bar.n)
            if finished:
                return
            if time.monotonic() - synced >= SYNC_SECONDS:
                mirror.sync()
                synced = time.monotonic()


def _result(folder: RunFolder, mirror: Mirror) -> dict[str, Any]:
    journal = folder.journal
    events = journal.read()
    start = max(i for i, event in enumerate(events) if event["event"] == "started")
    for event in events[start:]:
        if event["event"] == "stopped":
            raise RunError(f"run {folder.name} stopped: {event['error']}")
    test, untrained, epochs = journal.last("test"), journal.last("untrained"), journal.epochs()
    assert test is not None
    assert untrained is not None
    validation = [event for event in epochs if "validation" in event]
    return {
        "run": folder.name,
        "status": "finished",
        "resumed": any(event["event"] == "resumed" for event in events),
        "reused": False,
        "folder": str(folder.path),
        "checkpoint": test["checkpoint"],
        "config": json.loads(folder.config.model_dump_json()),
        "metrics": test["metrics"],
        "untrained": untrained["metrics"],
        "validation": validation[-1]["validation"] if validation else None,
        **_choices(folder.config.report, epochs, test),
        "losses": [{"epoch": event["epoch"], **event["losses"]} for event in epochs],
        "seconds": _seconds(events[start:]),
        "tables": folder.digests,
        "mlflow": {"uri": mirror.public_uri, "run_id": mirror.run_id, "experiment_id": mirror.experiment_id},
    }


def _choices(
    report: ReportConfig, epochs: list[dict[str, Any]], test: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The test metrics of the last epoch, of the one chosen on validation, and of the one best on test.

    Epochs count that were looked at (`train.validate_every`). Where the data set has no validation
    identities, no epoch is chosen by them.
    """
    last = {"epoch": test["epochs"], "metrics": test["metrics"]}
    looked_at = [{"epoch": e["epoch"], "metrics": e["test"]} for e in epochs if "test" in e] + [last]
    validated = {e["epoch"]: e["validation"] for e in epochs if "validation" in e}

    def best(candidates: list[dict[str, Any]], metrics_of: Callable[[dict[str, Any]], Any]) -> Any:
        return max(candidates, key=lambda c: metrics_of(c)[report.feature]["mAP"], default=None)

    choices = {
        "last": last,
        "validation": best(
            [c for c in looked_at if c["epoch"] in validated], lambda c: validated[c["epoch"]]
        ),
        "best_on_test": best(looked_at, lambda c: c["metrics"]),
    }
    chosen = choices[report.epoch] or last
    reported = {
        "feature": report.feature,
        "chosen_by": report.epoch if choices[report.epoch] else "last",
        "epoch": chosen["epoch"],
        "metrics": chosen["metrics"][report.feature],
    }
    return {"choices": choices, "reported": reported}


def _seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    """Where the time of a start went, by part, and the share that was training and evaluation.

    Args:
        events: From the "started" event on.
    """
    started = events[0]["time"]
    reports = [event for event in events if event.get("began", 0) > started]
    # Workers that crash come back; what they did before is lost time, the rest is counted by part.
    last = [event for event in reports if event["began"] == reports[-1]["began"]]
    parts: dict[str, float] = {}
    for event in last:
        for name, value in event["seconds"].items():
            parts[name] = parts.get(name, 0.0) + value
    began, ended = last[0]["began"], last[-1]["time"]
    working = parts.get("steps", 0.0) + parts.get("evaluation", 0.0)
    return {
        "start_workers": reports[0]["began"] - started,
        "failed_attempts": began - reports[0]["began"],
        **parts,
        "other": ended - began - sum(parts.values()),
        "workers": ended - began,
        "share_in_steps_and_evaluation": working / (ended - reports[0]["began"]),
        "total": ended - started,
    }
