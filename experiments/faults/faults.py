"""The faults: what each one does to a training from outside, and what must hold afterwards."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs
from safetensors.torch import load_file

from data_catalog.storage import filesystems
from data_catalog.storage.folders import Folder
from experiments.command_line import COME_AGAIN_STATUS
from experiments.faults.cluster_nodes import ClusterNodes, kill_worker, limit_memory, slow_down
from experiments.faults.mlflow_server import MlflowServer
from experiments.faults.small_disk import enlarge, small_disk
from experiments.faults.storage_gate import StorageGate
from experiments.faults.training_process import (
    TRAINING_BEGINS,
    EndedError,
    TrainingProcess,
    most_moments,
    names_of,
    processes_of,
    steps_since_begin,
)
from experiments.run import checkpoints
from experiments.run.micro_batches import OUT_OF_MEMORY, more_micro_batches
from experiments.run.run_folder import RunFolder
from experiments.tracking.mlflow_logger import find_missing

ENDPOINT = "AWS_ENDPOINT_URL"
DISKS = 1.5, 8.0
"""Sizes of the small disk in checkpoints: the second one does not fit; after it was enlarged all do."""


class NotTriedError(Exception):
    """A fault that cannot be produced here; says why, and what it needs."""


@dataclass(frozen=True)
class Plan:
    """How faults are tried.

    Attributes:
        options: Options of `train.py`, without those of where things are kept.
        workspace: All nodes must reach it.
        catalog: Folder or URI of the catalog.
        on_cpus: Whether the workers get no GPU even where there are some.
        kills: How often a worker is killed.
        seed: Seed of the moments.
        may_end_nodes: Whether a node of the cluster may be ended.
        away_seconds: How long the MLflow server, or the storage, stays away.
        most_seconds: How long each thing that is waited for may take.
        is_elastic: Whether the number of workers may change.
    """

    options: tuple[str, ...]
    workspace: Folder
    catalog: str
    on_cpus: bool
    kills: int
    seed: int
    may_end_nodes: bool
    away_seconds: float
    most_seconds: float
    is_elastic: bool = False


@dataclass
class Scene:
    """What a fault has to do with.

    Attributes:
        plan: How faults are tried.
        undisturbed: A finished run of the same settings.
        nodes: Where its workers run.
        random: Draws the moments.
        folder: An empty folder of this machine.
    """

    plan: Plan
    undisturbed: RunFolder
    nodes: ClusterNodes
    random: random.Random
    folder: Path

    def moments(self, count: int) -> list[int]:
        """Steps, in order, after which a fault comes."""
        steps = self.undisturbed.journal.epochs()[-1]["step"]
        return sorted(self.random.sample(range(1, most_moments(steps) + 1), count))

    def await_moment(self, training: TrainingProcess, step: int) -> list[dict[str, Any]]:
        """Wait until a training is somewhere after a step; returns its workers."""
        events = training.wait(lambda events: steps_since_begin(events) >= step)
        steps = self.undisturbed.journal.epochs()[-1]["step"]
        time.sleep(self.random.random() * self.undisturbed.finished_result.seconds["steps"] / steps)
        return processes_of(events)


@dataclass(frozen=True)
class Disturbed:
    """How a training came through a fault.

    Attributes:
        seconds: How long until it went on, each time; empty where it did not stop, or must not go on.
        lost: What was lost beside what a comparison of the results finds; one line each.
        goes_on: Whether it is to end as the undisturbed run.
        expected: The undisturbed run as which it is to end, where it is another one.
    """

    seconds: tuple[float, ...] = ()
    lost: tuple[str, ...] = ()
    goes_on: bool = True
    expected: RunFolder | None = None


def lose_workers(scene: Scene, training: TrainingProcess) -> Disturbed:
    """A worker is killed, at random moments."""
    training.start()
    seconds = []
    for step in scene.moments(scene.plan.kills):
        worker = scene.random.choice(scene.await_moment(training, step))
        since = time.time()
        scene.nodes.call(worker["host"], kill_worker, worker["pid"])
        seconds.append(training.wait_for_training(since))
    training.finish()
    return Disturbed(tuple(seconds))


def lose_node(scene: Scene, training: TrainingProcess) -> Disturbed:
    """A node with workers ends."""
    if not scene.nodes.is_cluster:
        raise NotTriedError("needs a cluster of two or more nodes: name it in RAY_ADDRESS")
    if not scene.plan.may_end_nodes:
        raise NotTriedError("ends a node of Ray, with all that others run there: allow it with --end-node")
    training.start()
    workers = scene.await_moment(training, scene.moments(1)[0])
    head = scene.nodes.find_head()
    ended = next((worker for worker in workers if worker["host"] != head), None)
    if ended is None:
        raise NotTriedError("needs workers on other nodes than the head: ask for more --workers")
    since = time.time()
    scene.nodes.kill_node(ended["host"], ended["pid"])
    seconds = training.wait_for_training(since)
    training.finish()
    return Disturbed((seconds,))


def lose_driver(scene: Scene, training: TrainingProcess) -> Disturbed:
    """The command is killed, and given again."""
    training.start()
    scene.await_moment(training, scene.moments(1)[0])
    since = training.send(signal.SIGKILL)
    training.wait_for_end()
    training.start()
    seconds = training.wait_for_training(since)
    training.finish()
    return Disturbed((seconds,))


def lose_head(scene: Scene, training: TrainingProcess) -> Disturbed:
    """The head of Ray is killed, and the command given again."""
    if scene.nodes.is_cluster:
        raise NotTriedError(
            "needs a Ray that the command starts itself: unset RAY_ADDRESS. On a cluster, end its head while "
            "train.py runs, start it again, and give the command again"
        )
    training.start()
    # Early, since the command takes seconds to notice.
    scene.await_moment(training, 1)
    since = training.kill_head()
    status, words = training.wait_for_end(), training.last_words()
    if status == 0:
        # It trained to its end before it noticed.
        training.finish()
        return Disturbed()
    training.start()
    seconds = training.wait_for_training(since)
    training.finish()
    is_clear = status > 0 and words.startswith("error: ") and "head" in words
    return Disturbed(
        (seconds,), () if is_clear else (f"exit status {status}, and it did not say why: {words}",)
    )


def run_out_of_memory(scene: Scene, training: TrainingProcess) -> Disturbed:
    """The memory of a worker does not suffice for a step; half as many samples at a time fit."""
    if scene.nodes.has_gpus and not scene.plan.on_cpus:
        raise NotTriedError(
            "limits the address space of a process, not the memory of a GPU: --gpus-per-worker 0"
        )
    number = more_micro_batches(scene.undisturbed.config)
    if number is None:
        raise NotTriedError("needs a worker with two or more samples of a batch: ask for fewer --workers")
    training.start()
    worker = scene.random.choice(processes_of(training.wait(processes_of)))
    since = time.time()
    # Before the first step: it keeps its memory for all others.
    scene.nodes.call(worker["host"], limit_memory, worker["pid"])
    ends = {OUT_OF_MEMORY, "worker_failed", "finished"}
    events = training.wait(lambda events: ends.intersection(names_of(events)))
    if OUT_OF_MEMORY not in names_of(events):
        raise NotTriedError("the worker needed no more memory for its steps, or ended in another way")
    seconds = training.wait_for_training(since)
    training.finish()
    if "resumed" in names_of(training.events()):
        raise NotTriedError("the worker needed more memory only after the first checkpoint")
    # Another number of micro-batches rounds in another way.
    with training.beside("--set", f"train.micro_batches={number}") as other:
        other.start()
        return Disturbed((seconds,), expected=other.finish())


def lose_mlflow(scene: Scene, training: TrainingProcess) -> Disturbed:
    """The MLflow server is killed, and comes back."""
    with MlflowServer(scene.folder) as server:
        training.command += ["--tracking-uri", server.uri]
        training.start()
        scene.await_moment(training, scene.moments(1)[0])
        server.kill()
        time.sleep(scene.plan.away_seconds)
        server.start()
        run = training.finish()
        if training.result["mlflow"]["behind"]:
            # It ended before the server was back.
            training.start()
            run = training.finish()
        return Disturbed(lost=tuple(find_missing(server.uri, run)))


def lose_storage(scene: Scene, training: TrainingProcess) -> Disturbed:
    """The object storage answers 503 to all requests, and comes back."""
    if scene.nodes.is_cluster:
        raise NotTriedError("needs workers on this machine alone: unset RAY_ADDRESS")
    endpoint, location = os.environ.get(ENDPOINT, ""), training.workspace.location
    if training.workspace.is_local or "endpoint_override" in location or not endpoint.startswith("http://"):
        raise NotTriedError(
            f"needs object storage on plain HTTP: --workspace s3://BUCKET/FOLDER, and {ENDPOINT}=http://HOST:PORT"
        )
    with StorageGate(endpoint) as gate:
        training.environment[ENDPOINT] = gate.url
        training.start()
        scene.await_moment(training, scene.moments(1)[0])
        since = time.time()
        with gate.shut():
            time.sleep(scene.plan.away_seconds)
        back = time.time()
        if not gate.refused:
            raise NotTriedError("the run asked nothing of its storage meanwhile: raise --away-seconds")

        def find_times(events: list[dict[str, Any]]) -> list[float]:
            return [event["time"] for event in events if event["time"] > back]

        seconds = min(find_times(training.wait(find_times))) - since
        training.finish()
    return Disturbed((seconds,))


def terminate(scene: Scene, training: TrainingProcess) -> Disturbed:
    """The command gets SIGTERM, as a scheduler sends it, and is given again."""
    training.start()
    scene.await_moment(training, scene.moments(1)[0])
    since = training.send(signal.SIGTERM)
    status = training.wait_for_end()
    events = training.events()
    training.start()
    seconds = training.wait_for_training(since)
    begun = [event for event in training.events() if event["event"] in TRAINING_BEGINS]
    training.finish()
    lost = [] if status == COME_AGAIN_STATUS else [f"exit status {status}, not {COME_AGAIN_STATUS}"]
    if (steps := steps_since_begin(events) - begun[-1].get("step", 0)) > 0:
        lost.append(f"{steps} steps were trained again")
    return Disturbed((seconds,), tuple(lost))


def slow_worker(scene: Scene, training: TrainingProcess) -> Disturbed:
    """A worker stands still three quarters of the time."""
    training.start()
    workers = processes_of(training.wait(processes_of))
    if len(workers) < 2:
        raise NotTriedError("needs two or more workers, of which one is slower: ask for more --workers")
    rank = scene.random.randrange(len(workers))
    scene.nodes.call(workers[rank]["host"], slow_down, workers[rank]["pid"], wait=False)
    training.finish()
    named = [event["slow_worker"]["rank"] for event in training.events() if "slow_worker" in event]
    return Disturbed(lost=() if rank in named else (f"the journal does not name worker {rank} as slow",))


def diverge(scene: Scene, training: TrainingProcess) -> Disturbed:
    """The loss becomes NaN, at a learning rate that is too high."""
    training.start()
    training.wait_for_end()
    run = training.run
    stopped = run and run.journal.last("stopped")
    if run is None or not stopped or not stopped.get("samples"):
        return Disturbed(
            lost=(f"the journal does not name the batch: {training.last_words()}",), goes_on=False
        )
    if (checkpoint := run.last_checkpoint) is None:
        return Disturbed(lost=("it has no checkpoint of a step before that",), goes_on=False)
    with checkpoints.fetched(checkpoint) as folder:
        weights = load_file(folder / "model.safetensors")
    lost = [
        f"{name} of the last checkpoint is not finite"
        for name, x in weights.items()
        if not x.isfinite().all()
    ]
    return Disturbed(lost=tuple(lost), goes_on=False)


def bytes_of(folder: Folder) -> int:
    """How many bytes the files of a folder have."""
    filesystem, path = filesystems.open_root(folder.location)
    return sum(file.size or 0 for file in filesystem.get_file_info(fs.FileSelector(path)))


def fill_disk(scene: Scene, training: TrainingProcess) -> Disturbed:
    """The disk with the checkpoints is full, and enlarged."""
    if scene.nodes.is_cluster:
        raise NotTriedError("needs workers on this machine alone: unset RAY_ADDRESS")
    size = bytes_of(Folder(scene.undisturbed.finished_result.checkpoint))
    with ExitStack() as mounted:
        try:
            mounted.enter_context(small_disk(scene.folder, int(DISKS[0] * size)))
        except OSError as error:
            raise NotTriedError(f"needs a small disk, which only root may mount ({error})") from error
        training.start()
        if training.wait_for_end() == 0:
            raise EndedError("the run ended before the disk was full")
        words, since = training.last_words(), time.time()
        enlarge(scene.folder, int(DISKS[1] * size))
        training.start()
        seconds = training.wait_for_training(since)
        training.finish()
    return Disturbed((seconds,), () if str(scene.folder) in words else (f"its error names no file: {words}",))


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        disturb: Trains and disturbs.
        options: What the training is given beside the options of all, of which `{folder}` is the scene's.
    """

    disturb: Callable[[Scene, TrainingProcess], Disturbed]
    options: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """What happens, in a few words."""
        return (self.disturb.__doc__ or "").strip().rstrip(".")


FAULTS = {
    "worker": Fault(lose_workers),
    "node": Fault(lose_node),
    "head": Fault(lose_head),
    "driver": Fault(lose_driver),
    "terminated": Fault(terminate),
    "slow": Fault(slow_worker),
    "nan": Fault(
        diverge,
        # The first step leaves finite weights, of which there is a checkpoint.
        (
            *("--set", "optim.learning_rate=1e30"),
            *("--set", "optim.gradient_clip=0"),
            *("--set", "train.checkpoint_steps=1"),
        ),
    ),
    "memory": Fault(run_out_of_memory, ("--on-memory", "double")),
    "mlflow": Fault(lose_mlflow),
    "storage": Fault(lose_storage),
    "disk": Fault(fill_disk, ("--storage", "{folder}")),
}
