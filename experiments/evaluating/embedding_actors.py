"""Embeddings of a view by Ray Data over all nodes of a cluster: each row once, on any number of actors.

The view is cut into the batches that one process would make, and an actor embeds a whole batch a call, so
the embeddings depend neither on the number of actors nor on which of them does what. The model reaches them
through Ray's object store, once a node: no folder need be shared for it. The view is read from its catalog.
An actor that is lost is started again, and its batch is done again.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from data_catalog.progress import progress_bar
from data_catalog.ray_session import ensure_ray
from data_catalog.views.training_view import View, open_view
from experiments.evaluating.evaluation_target import Subject
from experiments.run.evaluation import embed_rows, retrieval_features
from experiments.run.lifecycle import prepare_ray
from experiments.run.run_result import RunError
from stmi.modality import Modality

PROCESSORS_PER_ACTOR = 4
"""Where there is no GPU: each actor holds a model, and many threads on one batch wait for each other."""


def embed_on_cluster(
    subject: Subject, missing: Sequence[tuple[Modality, ...]], actors: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Every retrieval feature of every row of a view, for one set of missing modalities after another.

    Args:
        subject: Model, on the CPU, and view.
        missing: Sets of modalities whose images are replaced by zeros.
        actors: How many; None for as many as the cluster holds.

    Yields:
        For each set, float32 `(rows, width)` by feature name, in the order of the view.

    Raises:
        RunError: There are fewer GPUs than actors asked for, or an actor failed.
    """
    prepare_ray()
    ensure_ray()
    size, share = share_cluster([node["Resources"] for node in ray.nodes() if node["Alive"]], actors)
    count = len(subject.table)
    total = count * len(missing)
    made: dict[str, np.ndarray] = {}
    try:
        with progress_bar("embedding", "sample") as report:
            report(0, total)
            for first, block in in_order(_blocks(subject, missing, size, share), total):
                row, rows = first % count, len(block["U"])
                if row == 0:
                    made = {n: np.empty((count, v.shape[1]), v.dtype) for n, v in block.items()}
                for name, values in block.items():
                    # Copied out at once: the object store keeps a block for as long as it is looked at.
                    made[name][row : row + rows] = values
                report(first + rows, total)
                if row + rows == count:
                    yield retrieval_features(
                        {name: torch.from_numpy(values) for name, values in made.items()}
                    )
    except ray.exceptions.RayError as error:
        raise RunError(f"{subject.name} could not be embedded: {_reason(error)}") from error


def _reason(error: ray.exceptions.RayError) -> str:
    """The line of a failure that is for the user: Ray puts its own advice below, and its traceback above."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return str(error.cause).partition("\n")[0]
    return str(error).strip().rpartition("\n")[2]


def _blocks(
    subject: Subject, missing: Sequence[tuple[Modality, ...]], size: int, share: dict[str, Any]
) -> Iterable[dict[str, np.ndarray]]:
    """What `_Embedder` makes, batch after batch, a whole view for each set of missing modalities."""
    count, batch = len(subject.table), subject.config.train.evaluation_batch
    batches = [
        {"setting": setting, "first": first, "last": min(first + batch, count)}
        for setting in range(len(missing))
        for first in range(0, count, batch)
    ]
    size = min(size, len(batches))
    data = ray.data.from_items(batches, override_num_blocks=len(batches))
    # Ray sets up its loggers with the first data set, so they are quietened after it.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.context.enable_progress_bars = False
    data.context.execution_options.preserve_order = True
    data.context.raise_original_map_exception = True
    embedded = data.map_batches(
        _Embedder,
        fn_constructor_args=(ray.put(subject), missing),
        batch_size=1,
        # Where others keep the cluster busy, the actors that find room begin.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=size, initial_size=size),
        **share,
    )
    return embedded.iter_batches(batch_size=None, prefetch_batches=0)


class _Embedder:
    """The Ray Data actor: embeds one batch a call.

    Args:
        subject: Where the object store has the `Subject`.
        missing: Sets of missing modalities.
    """

    def __init__(self, subject: ray.ObjectRef, missing: Sequence[tuple[Modality, ...]]) -> None:
        self.reference = subject
        self.missing = missing

    # Loaded by the first call, not the constructor: what goes wrong in a call reaches the user as it is.
    @cached_property
    def subject(self) -> Subject:
        """The subject, its model where this actor computes."""
        processors = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(processors)))
        subject = ray.get(self.reference)
        subject.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return subject

    @cached_property
    def view(self) -> View:
        """The subject's view."""
        return open_view(self.subject.table)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        setting, first, last = (int(batch[name][0]) for name in ("setting", "first", "last"))
        rows = np.arange(first, last)
        subject = self.subject
        made = embed_rows(
            subject.model, self.view, rows, subject.autocast, subject.captions, self.missing[setting]
        )
        place = setting * len(self.view) + rows
        return {"place": place} | {name: values.cpu().numpy() for name, values in made.items()}


def in_order(
    blocks: Iterable[Mapping[str, np.ndarray]], count: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Blocks of rows as they come, each with the place of its first row.

    Args:
        blocks: Columns by name; `place` numbers the rows from 0 over all blocks.
        count: Rows in all.

    Raises:
        RunError: A row is missing, comes twice or out of order.
    """
    done = 0
    for block in blocks:
        columns = dict(block)
        places = columns.pop("place")
        if not np.array_equal(places, np.arange(done, done + len(places))):
            raise RunError(f"Ray Data gave rows {places.min()} to {places.max()} where row {done} was next")
        yield done, columns
        done += len(places)
    if done != count:
        raise RunError(f"Ray Data gave {done} rows, expected {count}")


def share_cluster(machines: Sequence[Mapping[str, float]], actors: int | None) -> tuple[int, dict[str, Any]]:
    """How many actors a cluster is to hold, and what Ray keeps for each.

    Args:
        machines: CPUs and GPUs of every machine, as Ray names them.
        actors: How many; None for one a GPU, or without GPUs one for every few processors.

    Raises:
        RunError: There are GPUs, but fewer than actors.
    """
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus:
        if actors is not None and actors > gpus:
            raise RunError(
                f"--workers={actors}, but the cluster has {gpus} GPUs; ask for at most as many, or hide the "
                "GPUs (CUDA_VISIBLE_DEVICES=) to evaluate on processors"
            )
        return actors or gpus, {"num_gpus": 1}
    processors = [machine["CPU"] for machine in machines if machine.get("CPU", 0) > 0]
    if actors is None:
        each = min(PROCESSORS_PER_ACTOR, max(processors))
        return sum(int(own / each) for own in processors), {"num_cpus": each}
    # The largest share of which the machines hold so many, in the ten thousandths that Ray counts.
    shares = {math.floor(1e4 * own / parts) / 1e4 for own in processors for parts in range(1, actors + 1)}
    fitting = (share for share in shares if sum(int(own / share) for own in processors) >= actors)
    return actors, {"num_cpus": max(fitting)}
