"""One run as a trial of a study: a function that Ray Tune calls trains it, in its own process if it can."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from experiments.recipes import ExperimentConfig, parse
from experiments.run.conclusion import conclude
from experiments.run.lifecycle import LOOK_SECONDS, BusyError, begin, fit, gpus_of_each, only_one, work_of
from experiments.run.run_data import RunTables
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import RunError, StoppedError
from experiments.run.session import OwnProcessSession
from experiments.run.training_loop import train
from experiments.tracking.journal import Journal
from experiments.tracking.polling import watching

Tell = Callable[[dict[str, Any]], None]

PATIENCE_SECONDS = 900.0
"""How long a trial waits for a process that has its run and gets no further; an epoch may take that long."""
HEAD_NODE = "node:__internal_head__"
"""A resource that every cluster has once, on its head node."""


def train_trial(
    parameters: dict[str, Any],
    *,
    tables: RunTables,
    workspace: Path,
    storage_uri: str | None,
    gpus_per_worker: float | None,
) -> None:
    """A Tune function trainable: train the run of a config, or go on with it, or find it finished.

    Reports `epoch`, `step`, `loss` and, where the epoch was validated, `validation_mAP` (of the config's
    reported feature) after each epoch; at the end `finished`, or with the reason `stopped` where the run
    stopped itself, `failed` where its workers failed more often than a run survives.

    Args:
        parameters: `config`, an `ExperimentConfig` in its dumped form.
        tables: What the run reads.
        workspace: Folder of all runs, on a disk that all nodes share.
        storage_uri: Folder or URI of checkpoints; None for the run's own folder.
        gpus_per_worker: As in `runner.run`.

    Raises:
        BusyError: Another process has the run and gets no further. The trial is tried again, and until then
            holds nothing that the other one may be waiting for.
    """
    config = parse(parameters["config"])
    feature = config.report.feature

    def tell(facts: dict[str, Any]) -> None:
        if facts["event"] != "epoch":
            return
        told = {name: facts[name] for name in ("epoch", "step")} | {"loss": facts["losses"]["total"]}
        if "validation" in facts:
            told["validation_mAP"] = facts["validation"][feature]["mAP"]
        tune.report(told)

    try:
        train_run(config, tables, workspace, storage_uri, tell, _own_processors(), gpus_per_worker)
    except BusyError:
        raise
    except StoppedError as error:
        # It would stop again, so the trial has not failed: there is nothing to try once more.
        tune.report({"stopped": str(error)})
    except RunError as error:
        # Ray Train has tried it often enough.
        tune.report({"failed": str(error)})
    else:
        tune.report({"finished": True})


def train_run(
    config: ExperimentConfig,
    tables: RunTables,
    workspace: Path,
    storage_uri: str | None,
    tell: Tell,
    processors: int | None = None,
    gpus_per_worker: float | None = None,
) -> RunFolder:
    """Bring a run to its end from wherever it stands; returns its folder, which then has the result.

    One worker trains in this process; several are started by Ray Train.

    Args:
        config: The run's settings, already checked against its tables.
        tables: What it reads.
        workspace: Folder of all runs.
        storage_uri: Folder or URI of checkpoints; None for the run's own folder.
        tell: Called with each epoch's report once it is written down, first with those of earlier starts.
        processors: That one worker may use; None for all of this machine that the process may.
        gpus_per_worker: As in `runner.run`.

    Raises:
        StoppedError: The run stopped itself.
        BusyError: Another process has the run, and has got no further for `PATIENCE_SECONDS`.
        RunError: Its workers failed more often than a run survives.
    """
    folder = RunFolder.of(workspace, config, tables)
    # Two trials may draw the same config: the second waits, and finds what the first has done. A process that
    # has the run may in turn wait for the processor that this trial holds, so it does not wait for ever.
    with only_one(folder, PATIENCE_SECONDS):
        for known in folder.journal.epochs():
            # Whoever listens may have been killed before it heard.
            tell(known)
        if not folder.trained:
            begin(folder, tables)
            if config.train.workers == 1:
                place = folder.checkpoint_place(storage_uri)
                threads = processors or len(os.sched_getaffinity(0))
                accelerated = torch.cuda.is_available() and gpus_per_worker != 0
                device = torch.device("cuda" if accelerated else "cpu")
                session = OwnProcessSession(folder, place, threads, device, tell)
                train(work_of(config, tables), session)
            else:
                with _telling(folder.journal, tell):
                    fit(config, tables, folder, storage_uri, gpus_per_worker)
        if not folder.is_finished:
            conclude(folder)
    return folder


@contextmanager
def _telling(journal: Journal, tell: Tell) -> Iterator[None]:
    """Meanwhile tell of each epoch that Ray Train's controller, another process, writes into a journal."""
    told = len(journal.epochs())

    def look() -> None:
        nonlocal told
        for facts in journal.epochs()[told:]:
            tell(facts)
            told += 1

    with watching(look, LOOK_SECONDS):
        yield


def trial_resources(workers: int, gpus_per_worker: float | None = None) -> tune.PlacementGroupFactory:
    """What a trial holds of the cluster.

    One worker is the trial itself: a processor, and as much of a GPU as it gets. Several workers ask for
    their own through Ray Train; the trial that waits for them must hold nothing that they need, or trials
    that have all started would wait for each other for ever.
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


def _own_processors() -> int:
    """Processors that the cluster gave to this trial."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
