"""Which rows of the training views each worker reads in each step; known without opening a view."""

from collections.abc import Sequence

import numpy as np

from data_catalog.tables.table import Table
from data_catalog.views.placement import assign_shards, identities_by_shard
from experiments.experiment_config import ExperimentConfig
from stmi.training import batch_plan


class BatchSchedule:
    """The batches of a run, spread over its workers as `data.placement` says.

    Args:
        views: The training view of each data set, in the order of `config.data.names`.
        config: The run.
        workers: How many there are; None for as many as `config` says.

    Attributes:
        identities: How many identities there are; those of two data sets are different ones.
        shards: By rank, the shards of the view that the worker opens; None for all shards of all views.
        labels: By rank, the identity of each row of these shards, counted from 0 over all views, int64.

    Raises:
        data_catalog.errors.CatalogError: The view has too few shards for so many workers.
    """

    def __init__(self, views: Sequence[Table], config: ExperimentConfig, workers: int | None = None) -> None:
        identity = [identities_by_shard(view) for view in views]
        whole = [np.unique(np.concatenate(own), return_inverse=True) for own in identity]
        counts = [len(names) for names, _ in whole]
        workers = workers or config.train.workers
        self.workers = workers
        self.config = config
        self.identities = sum(counts)
        # Each data set by itself; `labels` counts on from one to the next.
        self._by_dataset = {name: labels for name, (_, labels) in zip(config.data.names, whole, strict=True)}
        firsts = np.cumsum([0, *counts[:-1]])
        labels = np.concatenate([first + own for first, (_, own) in zip(firsts, whole, strict=True)])
        self.shards: list[list[int]] | list[None]
        if config.data.placement == "replicated":
            self.shards = [None] * workers
            self.labels = [labels] * workers
        else:
            [shards] = identity
            self.shards = assign_shards([len(rows) for rows in shards], workers)
            label_parts = np.split(labels, np.cumsum([len(rows) for rows in shards])[:-1])
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
        """The batches of all workers, where all open the whole views."""
        config = self.config
        return batch_plan.plan_together(
            self._by_dataset, config.data.shares, config.batch, config.seed, epoch
        )
