"""A training whose step runs out of memory goes on with more micro-batches, which need less of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_catalog.errors import describe_cause
from data_catalog.ray_failures import ran_out_of_memory
from experiments.experiment_config import ExperimentConfig
from experiments.run.run_result import RunError
from experiments.tracking.journal import Journal

OUT_OF_MEMORY = "out_of_memory"
"""The event of a step that ran out of memory; `micro_batches` is the number with which training goes on."""
REASON_LENGTH = 300


class StepMemoryError(RunError):
    """A worker has run out of memory in a step.

    Args:
        step: Step of the run, from 1.
        micro_batches: Into how many the worker divided its samples.
        samples: How many a micro-batch had.
        reason: What the allocator said.
    """

    def __init__(self, step: int, micro_batches: int, samples: int, reason: str) -> None:
        # All arguments, so that it can be sent to another process.
        super().__init__(step, micro_batches, samples, reason)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        step, micro_batches, samples, reason = self.args
        return (
            f"step {step} needed more memory than a worker has, with train.micro_batches={micro_batches}, "
            f"{samples} samples each ({reason})"
        )


@contextmanager
def naming_step(step: int, config: ExperimentConfig, workers: int) -> Iterator[None]:
    """Context in which an allocation that fails is an error of a step.

    Args:
        step: Step of the run, from 1.
        config: The run.
        workers: How many share its batches.

    Raises:
        StepMemoryError: Names the step.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        number = config.train.micro_batches
        samples = config.batch.size // (workers * number)
        raise StepMemoryError(step, number, samples, describe_cause(error)[:REASON_LENGTH]) from None


def more_micro_batches(config: ExperimentConfig, fewest: int | None = None) -> int | None:
    """The next number of micro-batches: twice as many, or the next one that divides the samples of a worker.

    Args:
        config: The run.
        fewest: As `fewest_workers` of `RunOptions`.

    Returns:
        None where there is none: a micro-batch has one sample.
    """
    train = config.train
    shares = [config.batch.size // workers for workers in {train.workers, fewest or train.workers}]
    numbers = range(2 * train.micro_batches, min(shares) + 1)
    return next((number for number in numbers if all(share % number == 0 for share in shares)), None)


def with_micro_batches(config: ExperimentConfig, number: int) -> ExperimentConfig:
    """The same run with another number of micro-batches."""
    train = config.train.model_copy(update={"micro_batches": number})
    return config.model_copy(update={"train": train})


def with_noted_micro_batches(config: ExperimentConfig, journal: Journal) -> ExperimentConfig:
    """The same run with the micro-batches that its steps needed in earlier starts, if these are more."""
    noted = (journal.last(OUT_OF_MEMORY) or {}).get("micro_batches", 1)
    return with_micro_batches(config, max(noted, config.train.micro_batches))
