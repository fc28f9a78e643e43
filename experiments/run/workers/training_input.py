"""What the workers of a run are given. Light to import: every process that starts workers unpickles it."""

from dataclasses import dataclass

from data_catalog.storage.folders import Folder
from data_catalog.tables.table import Table
from experiments.experiment_config import ExperimentConfig


@dataclass(frozen=True)
class TrainingInput:
    """What every worker of a run is given.

    Attributes:
        config: The run's settings.
        views: Name to view, as `RunTables` has them.
        captions: What the text features of the views were made from, by data set; empty where they hold no
            text.
        clip: Source of the CLIP, as workers find it.
        checkpoint: Folder or URI of the checkpoint of an earlier start, from which to continue; or None.
        stops: Steps after which a checkpoint is taken; the training ends after the last one of them. None to
            train to the end.
        threads: CPUs of each worker; None for its share of its machine.
        skips_not_finite: As in `RunOptions`.
        deterministic: As in `RunOptions`.
        initial: Folder or URI of the run, where it begins with weights that it keeps there; or None.
        stop_folders: Where a request to stop may be.
    """

    config: ExperimentConfig
    views: dict[str, Table]
    captions: dict[str, Table]
    clip: str
    checkpoint: str | None
    stops: tuple[int, ...] | None = None
    threads: int | None = None
    skips_not_finite: bool = False
    deterministic: bool = False
    initial: str | None = None
    stop_folders: tuple[Folder, ...] = ()
