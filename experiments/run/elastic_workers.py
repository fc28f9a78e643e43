"""Runs whose number of workers may change: with which numbers the global batch can be shared."""

from experiments.experiment_config import ConfigError, ExperimentConfig


def find_sizes(config: ExperimentConfig, fewest: int) -> list[int]:
    """Numbers of workers from `fewest` to those of the config with which the run can be trained, ascending.

    Args:
        config: The run.
        fewest: From 1.
    """
    batch, micro_batches = config.batch.size, config.train.micro_batches
    return [n for n in range(fewest, config.train.workers + 1) if batch % (n * micro_batches) == 0]


def check_range(config: ExperimentConfig, fewest: int) -> None:
    """Refuse a range of workers in which the run cannot be trained.

    Args:
        config: The run, with the most workers.
        fewest: With how many it is to go on.

    Raises:
        ConfigError: Says what to ask for.
    """
    wrong = f"--workers={fewest}-{config.train.workers}"
    if config.data.placement == "by_identity":
        raise ConfigError(
            f"{wrong}: with data.placement=by_identity the batches depend on the number of workers; ask for "
            "one number, or for data.placement=replicated"
        )
    if fewest < 1 or fewest not in find_sizes(config, max(1, fewest)):
        sizes = ", ".join(map(str, find_sizes(config, 1)))
        raise ConfigError(
            f"{wrong}: {fewest} workers cannot share batch.size={config.batch.size} with train.micro_batches="
            f"{config.train.micro_batches}; begin the range with one of {sizes}"
        )


def with_worker_count(config: ExperimentConfig, workers: int) -> ExperimentConfig:
    """The same run with another number of workers."""
    return config.model_copy(update={"train": config.train.model_copy(update={"workers": workers})})
