"""Which share of the training rows the batches of a run hold."""

import numpy as np
import pytest

from data_catalog.errors import CatalogError
from experiments.recipes import resolve
from experiments.run import batch_schedule, config_checks
from experiments.run.batch_schedule import BatchSchedule
from experiments.run.run_tables import RunTables


class FakeView(list):  # type: ignore[type-arg]
    """As many rows as a view, and no more of it."""


def schedule_of(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], *settings: str, shards: int = 1
) -> tuple[BatchSchedule, RunTables, object]:
    """The batches of identities with so many rows each."""
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = np.array_split(np.arange(len(counts)), shards)
    shard_labels = [labels[np.isin(labels, part)] for part in parts]
    monkeypatch.setattr(batch_schedule, "identities_by_shard", lambda view: shard_labels)
    config = resolve("demo", ["batch.size=8", "batch.samples_per_identity=2", *settings])
    view = FakeView(labels.tolist())
    return BatchSchedule([view], config), RunTables({"train": view}, {}, {}), config  # type: ignore[list-item,dict-item]


def naive_share(schedule: BatchSchedule) -> float:
    """Rows of all workers and epochs, counted one by one."""
    config = schedule.config
    seen = {
        (rank if config.data.placement == "by_identity" else 0, int(row))
        for epoch in range(config.train.epochs)
        for rank in range(config.train.workers)
        for row in schedule.rows(rank, epoch).ravel()
    }
    own = schedule.labels if config.data.placement == "by_identity" else schedule.labels[:1]
    return len(seen) / sum(map(len, own))


@pytest.mark.parametrize(
    "settings", [(), ("train.workers=2",), ("train.workers=2", "data.placement=by_identity")]
)
@pytest.mark.parametrize("counts", [[4] * 8, [3] * 6, [200, 2, 2, 2, 2, 2], [9, 50, 2, 2, 3, 7, 31, 4]])
def test_share_is_that_of_a_count_over_all_batches(
    counts: list[int], settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule, _, _ = schedule_of(monkeypatch, counts, "train.epochs=3", *settings, shards=2)
    assert schedule.seen_share(enough=2.0) == pytest.approx(naive_share(schedule))


def test_batches_that_never_see_most_rows_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tables, config = schedule_of(monkeypatch, [1000, 2, 2, 2], "train.epochs=5")
    [finding] = config_checks.check_batches(config, tables)  # type: ignore[arg-type]
    assert finding.check == "rows_never_seen"
    assert finding.message.startswith("the batches of all 5 epochs hold 1.6% of the 1006 training rows")


def test_balanced_identities_and_enough_epochs_are_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    for counts, epochs in (([8] * 6, 1), ([9, 50, 2, 2, 3, 7, 31, 4], 60)):
        _, tables, config = schedule_of(monkeypatch, counts, f"train.epochs={epochs}")
        assert config_checks.check_batches(config, tables) == ()  # type: ignore[arg-type]


def test_too_few_shards_stay_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CatalogError, match="2 workers cannot share 1 shards"):
        schedule_of(monkeypatch, [4] * 8, "train.workers=2", "data.placement=by_identity")
