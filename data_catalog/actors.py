"""Work on rows by Ray Data's actors: how they are started, and how often again."""

import logging
import warnings
from typing import TYPE_CHECKING, Any

from data_catalog.ray_failures import MAX_FAILURES

if TYPE_CHECKING:
    from ray.data import Dataset


def map_on_actors(
    rows: list[dict[str, Any]],
    actor: type,
    arguments: tuple[Any, ...],
    count: int,
    share: dict[str, Any],
    *,
    in_order: bool = False,
) -> "Dataset":
    """What actors make of rows; a lost actor is started again a few times, and its row is repeated.

    Args:
        rows: Each is the batch of one call.
        actor: Its class; a call takes a batch and gives one, as `ray.data.Dataset.map_batches` has it.
        arguments: Of its constructor.
        count: How many actors; in a busy cluster, the first ones that get resources begin.
        share: Resources of each, by the names of `map_batches`.
        in_order: Give the results in the order of the rows.
    """
    import ray  # noqa: PLC0415 - after its session has begun
    from ray.util.annotations import RayDeprecationWarning  # noqa: PLC0415

    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    # Ray configures its loggers with the first data set, so the level is set after it. The exception says it.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    data.context.enable_progress_bars = False
    data.context.execution_options.preserve_order = in_order
    data.context.raise_original_map_exception = True
    with warnings.catch_warnings():
        # There is no other way to bound how often actors are started again.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return data.map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
            **share,
            max_restarts=MAX_FAILURES,
            max_task_retries=MAX_FAILURES,
        )
