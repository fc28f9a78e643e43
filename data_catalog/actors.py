"""Work on rows by Ray Data's actors: how they are started, and how often again."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_catalog.ray_failures import MAX_FAILURES

_ROW = "_row"
"""Column with the number of the row that a batch was made of."""


def map_on_actors(
    rows: Sequence[dict[str, Any]],
    actor: type,
    arguments: tuple[Any, ...],
    count: int,
    share: dict[str, Any],
    *,
    in_order: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """What actors make of rows: a batch of columns for each.

    Where a process is lost, the rows that are left are asked of new actors, `MAX_FAILURES` times in a row
    without a result in between. Ray could restart a lost actor, but prints a warning for each of Ray Data's
    that it may restart: the arguments that Ray Data gives them are in the object store.

    Args:
        rows: Each is the batch of one call.
        actor: Its class; a call takes a batch and gives one, as `ray.data.Dataset.map_batches` has it.
        arguments: Arguments of its constructor.
        count: How many actors; in a busy cluster, the first ones that get resources begin.
        share: Resources of each, by the names of `map_batches`.
        in_order: Give the results in the order of the rows.

    Raises:
        ray.exceptions.RayError: Processes were lost too often.
    """
    from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError  # noqa: PLC0415

    left = {number: {**row, _ROW: number} for number, row in enumerate(rows)}
    failures = 0
    while left:
        try:
            for batch in _map(list(left.values()), actor, arguments, min(count, len(left)), share, in_order):
                del left[int(batch.pop(_ROW)[0])]
                failures = 0
                yield batch
        except (RayActorError, WorkerCrashedError, ObjectLostError):
            failures += 1
            if failures > MAX_FAILURES:
                raise


def _map(
    rows: list[dict[str, Any]],
    actor: type,
    arguments: tuple[Any, ...],
    count: int,
    share: dict[str, Any],
    in_order: bool,
) -> Iterator[dict[str, Any]]:
    import ray  # noqa: PLC0415 - after its session has begun
    from ray.util.annotations import RayDeprecationWarning  # noqa: PLC0415

    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    # Ray configures its loggers with the first data set, so the level is set after it. The exception says it.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    data.context.enable_progress_bars = False
    data.context.execution_options.preserve_order = in_order
    data.context.raise_original_map_exception = True
    with warnings.catch_warnings():
        # There is no other way to say that lost actors are not started again.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        made = data.map_batches(
            _Numbered,
            fn_constructor_args=(actor, arguments),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
            **share,
            max_restarts=0,
            max_task_retries=0,
        )
    yield from made.iter_batches(batch_size=None, prefetch_batches=0)


class _Numbered:
    """An actor whose batches have the number of the row that they were made of.

    Args:
        actor: Its class.
        arguments: Arguments of its constructor.
    """

    def __init__(self, actor: type, arguments: tuple[Any, ...]) -> None:
        self.actor = actor(*arguments)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        number = batch.pop(_ROW)[0]
        made = self.actor(batch)
        return made | {_ROW: np.full(len(next(iter(made.values()))), number)}
