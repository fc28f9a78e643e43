"""The training cost of a config in FLOPs, by which trials of a sweep are compared on any machine."""

from experiments.experiment_config import ExperimentConfig
from experiments.planning.flop_counts import pass_flops
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.run_tables import RunTables, count_cameras, training_views


class TrainingCost:
    """Counts the TFLOPs of all training steps of a config.

    Args:
        tables: The tables that the runs read.
    """

    def __init__(self, tables: RunTables) -> None:
        self.views = tables.views
        self._flops: dict[str, int] = {}

    def __call__(self, config: ExperimentConfig) -> float:
        """The training cost of a config, in 10^12 floating-point operations."""
        datasets = config.data.names
        schedule = BatchSchedule(training_views(self.views, datasets), config)
        # The perturbation probability changes no shape.
        sfm = config.model.sfm.model_copy(update={"perturbation": 0.0})
        key = config.model.model_copy(update={"sfm": sfm}).model_dump_json() + config.train.precision
        if key not in self._flops:
            cameras = count_cameras(self.views, datasets)
            self._flops[key] = sum(pass_flops(config, schedule.identities, cameras))
        samples = config.train.epochs * len(schedule.rows(rank=0, epoch=0)) * config.batch.size
        return samples * self._flops[key] / 1e12
