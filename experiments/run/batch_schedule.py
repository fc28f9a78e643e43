"""Which rows of the training view each worker reads in each step; known without opening the view."""

import numpy as np

from data_catalog.tables.table import Table
from data_catalog.views.placement import assign_shards, identities_by_shard
from experiments.recipes import ExperimentConfig
from stmi.training import batch_plan


class BatchSchedule:
    """The batches of a run, spread over its workers as `data.placement` says.

    Args:
        view: The training view.
        config: The run.
        workers: How many there are; None for as many as `config` says.

    Attributes:
        identities: How many identities there are.
        shards: By rank, the shards of the view that the worker opens.
        labels: By rank, the identity of each row of these shards, counted from 0 over the whole view, int64.

    Raises:
        data_catalog.errors.CatalogError: The view has too few shards for so many workers.
    """

    def __init__(self, view: Table, config: ExperimentConfig, workers: int | None = None) -> None:
        identity = identities_by_shard(view)
        names, labels = np.unique(np.concatenate(identity), return_inverse=True)
        workers = workers or config.train.workers
        self.workers = workers
        self.config = config
        self.identities = len(names)
        if config.data.placement == "replicated":
            self.shards = [list(range(len(identity)))] * workers
            self.labels = [labels] * workers
        else:
            self.shards = assign_shards([len(rows) for rows in identity], workers)
            label_parts = np.split(labels, np.cumsum([len(rows) for rows in identity])[:-1])
            self.labels = [np.concatenate([label_parts[number] for number in own]) for own in self.shards]

    def rows(self, rank: int, epoch: int) -> np.ndarray:
        """A worker's rows in each step of an epoch, as it numbers them in the shards that it opens.

        Args:
            rank: The worker.
            epoch: Epoch number.

        Returns:
            int64 `(steps, batch / workers)`.

        Raises:
            stmi.training.batch_plan.BatchPlanError: There are too few identities for the batch.
        """
        config = self.config
        if config.data.placement == "by_identity":
            return batch_plan.plan_share(self.labels, rank, config.batch, config.seed, epoch)
        share = batch_plan.rows_of_rank(config.batch.size, rank, self.workers)
        return self._whole_batches(epoch)[:, share]

    def seen_share(self, enough: float) -> float:
        """The share of the training rows that the batches of the whole run hold at least once.

        Args:
            enough: Share from which on no more epochs are looked at.
        """
        config, is_own = self.config, self.config.data.placement == "by_identity"
        seen = [np.zeros(len(labels), bool) for labels in (self.labels if is_own else self.labels[:1])]
        share = 0.0
        for epoch in range(config.train.epochs):
            for rank, rows in enumerate(seen):
                whole = self.rows(rank, epoch) if is_own else self._whole_batches(epoch)
                rows[whole] = True
            share = float(np.concatenate(seen).mean())
            if share >= enough:
                break
        return share

    def _whole_batches(self, epoch: int) -> np.ndarray:
        """The batches of all workers, where all open the whole view."""
        return batch_plan.plan(self.labels[0], self.config.batch, self.config.seed, epoch)
