import numpy as np
import pytest
from pydantic import ValidationError

from stmi import keyed_random
from stmi.config import BatchConfig
from stmi.training import batch_plan
from stmi.training.batch_plan import BatchPlanError

LABELS = np.repeat(np.arange(10), [3, 4, 5, 9, 4, 4, 8, 2, 6, 4])
BATCH = BatchConfig(size=12, samples_per_identity=4)


def plan_by_lists(labels: np.ndarray, config: BatchConfig, seed: int, epoch: int) -> np.ndarray:
    """The same plan with the same random numbers, by a slow loop over lists."""
    group = config.samples_per_identity
    random = keyed_random.generator(seed, "batch_plan", epoch)
    groups = []
    for label in sorted(set(labels.tolist())):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) < group:
            rows = np.concatenate([rows, random.choice(rows, group - len(rows))])
        groups.append([rows[i : i + group] for i in range(0, len(rows) - group + 1, group)])
    batches = []
    left = list(range(len(groups)))
    while len(left) >= config.size // group:
        chosen = random.choice(left, config.size // group, replace=False)
        batches.append(np.concatenate([groups[number].pop() for number in chosen]))
        left = [number for number in left if groups[number]]
    return np.stack(batches)


@pytest.mark.parametrize("seed", range(5))
def test_plan_equals_a_naive_loop_over_lists(seed: int):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(25), random.integers(1, 30, 25)))
    assert np.array_equal(batch_plan.plan(labels, BATCH, seed, 3), plan_by_lists(labels, BATCH, seed, 3))


def test_every_batch_holds_p_identities_with_k_samples_each():
    steps = batch_plan.plan(LABELS, BATCH, seed=0, epoch=0)
    for rows in steps:
        groups = LABELS[rows].reshape(3, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 3


def test_sample_is_repeated_only_if_its_identity_has_fewer_than_k():
    rows = batch_plan.plan(LABELS, BATCH, seed=0, epoch=0).ravel()
    values, counts = np.unique(rows, return_counts=True)
    assert set(LABELS[values[counts > 1]]) <= {0, 7}


def test_plan_is_a_function_of_seed_and_epoch():
    def plan(seed: int, epoch: int) -> list[list[int]]:
        return batch_plan.plan(LABELS, BATCH, seed, epoch).tolist()

    assert plan(0, 1) == plan(0, 1)
    assert plan(0, 1) != plan(0, 2)
    assert plan(0, 1) != plan(1, 1)


def test_workers_share_the_global_batch_without_gap_or_overlap():
    rows = np.arange(12)
    for world_size in (1, 2, 3, 4):
        parts = [rows[batch_plan.rows_of_rank(12, rank, world_size)] for rank in range(world_size)]
        assert np.concatenate(parts).tolist() == rows.tolist()


def test_workers_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(BatchPlanError, match=r"5 workers do not divide batch\.size=12"):
        batch_plan.rows_of_rank(12, 0, 5)


def test_too_few_identities_are_refused_with_the_largest_batch():
    with pytest.raises(BatchPlanError, match=r"needs 3 identities; the training data has 2.*at most 8"):
        batch_plan.plan(np.array([0] * 4 + [1] * 4), BATCH, seed=0, epoch=0)


def test_batch_that_is_not_identities_times_samples_is_refused():
    with pytest.raises(ValidationError, match=r"batch\.size=13 is not a multiple"):
        BatchConfig(size=13, samples_per_identity=4)


SHARED = BatchConfig(size=48, samples_per_identity=4)


def apart(world_size: int) -> list[np.ndarray]:
    """Labels of the rows of each worker, about as many for each; an identity has 2 to 13 samples."""
    samples = 2 + np.arange(96) * 7 % 12
    return [np.repeat(own, samples[own]) for own in np.array_split(np.arange(96), world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_shares_of_all_workers_make_identity_balanced_batches(world_size: int):
    labels = apart(world_size)
    shares = [batch_plan.plan_share(labels, rank, SHARED, seed=0, epoch=2) for rank in range(world_size)]
    assert len({share.shape for share in shares}) == 1
    assert shares[0].shape[1] == 48 // world_size
    for step in range(len(shares[0])):
        batch = np.concatenate([own[share[step]] for own, share in zip(labels, shares, strict=True)])
        groups = batch.reshape(12, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 12


@pytest.mark.parametrize("world_size", [2, 4])
def test_epoch_of_shares_is_as_long_as_that_of_the_shortest_worker_alone(world_size: int):
    labels = apart(world_size)
    smaller = BatchConfig(size=48 // world_size, samples_per_identity=4)
    # The first worker has the random numbers of a single one; the plans of the others differ by few steps.
    alone = batch_plan.plan(labels[0], smaller, seed=0, epoch=1)
    share = batch_plan.plan_share(labels, 0, SHARED, seed=0, epoch=1)
    assert np.array_equal(share, alone[: len(share)])
    groups = sum(max(1, count // 4) for own in labels for count in np.unique(own, return_counts=True)[1])
    assert 0.75 * groups / 12 < len(share) <= groups / 12


def test_one_worker_with_all_identities_has_the_batches_of_the_plan():
    [labels] = apart(1)
    for epoch in range(3):
        expected = batch_plan.plan(labels, SHARED, seed=4, epoch=epoch)
        assert np.array_equal(batch_plan.plan_share([labels], 0, SHARED, seed=4, epoch=epoch), expected)


def test_workers_have_different_random_numbers():
    own = apart(2)[0]
    first, second = (batch_plan.plan_share([own, own], rank, SHARED, seed=0, epoch=0) for rank in range(2))
    assert not np.array_equal(first, second)


def test_shares_that_cannot_be_filled_are_refused():
    with pytest.raises(BatchPlanError, match=r"5 workers do not divide the 12 identities of batch\.size=48"):
        batch_plan.plan_share(apart(5), 0, SHARED, seed=0, epoch=0)
    few = [np.repeat(np.arange(5), 4), np.repeat(np.arange(5, 30), 4)]
    with pytest.raises(BatchPlanError, match=r"worker 0 of 2 has 5 identities of its own.*needs 6"):
        batch_plan.plan_share(few, 1, SHARED, seed=0, epoch=0)


def greedy_owners(shares: list[float], places: int) -> list[int]:
    """Each place to the data set whose next one is due first, by a loop."""
    given = [0] * len(shares)
    owners = []
    for _ in range(places):
        due = [(given[number] + 0.5) / share for number, share in enumerate(shares)]
        owners.append(due.index(min(due)))
        given[owners[-1]] += 1
    return owners


SEVERAL = {
    "a": np.repeat(np.arange(20), np.arange(20) % 5 + 3),
    "b": np.repeat(np.arange(100, 130), 4),
    "c": np.repeat(np.arange(9), 11),
}


@pytest.mark.parametrize("shares", [(), (0.5, 0.3, 0.2), (0.1, 0.45, 0.45)])
def test_batches_of_several_data_sets_have_their_shares(shares: tuple[float, ...]):
    batch = BatchConfig(size=16, samples_per_identity=2)
    steps = batch_plan.plan_together(SEVERAL, shares, batch, seed=3, epoch=1)
    expected = np.array(shares or (20 / 59, 30 / 59, 9 / 59))
    ends = np.cumsum([len(labels) for labels in SEVERAL.values()])
    owners = np.searchsorted(ends, steps, side="right")[:, ::2]
    counts = np.array([[(step == number).sum() for number in range(3)] for step in owners])
    assert np.array_equal(np.repeat(owners, 2, axis=1), np.searchsorted(ends, steps, side="right"))
    # In every batch, and in all so far together, to within one identity or so.
    assert np.abs(counts - 8 * expected).max() < 2
    so_far = np.cumsum(counts, axis=0)
    assert np.abs(so_far - 8 * expected * np.arange(1, len(steps) + 1)[:, None]).max() < 1
    assert so_far[-1].tolist() == np.bincount(greedy_owners(list(expected), 8 * len(steps))).tolist()


def test_rows_of_each_data_set_are_drawn_as_those_of_one():
    batch = BatchConfig(size=16, samples_per_identity=2)
    steps = batch_plan.plan_together(SEVERAL, (0.5, 0.25, 0.25), batch, seed=0, epoch=0)
    labels = np.concatenate(
        [first + own for first, own in zip((0, 1000, 2000), SEVERAL.values(), strict=True)]
    )
    for rows in steps:
        groups = labels[rows].reshape(8, 2)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 8
        assert np.bincount(groups[:, 0] // 1000).tolist() == [4, 2, 2]
    used, times = np.unique(steps, return_counts=True)
    # Every identity has two samples or more, so none is repeated.
    assert times.max() == 1
    # 46 groups of the first in fours, 60 of the second and 45 of the third in twos: the first ends the epoch.
    assert 9 <= len(steps) <= 11
    assert len(used) == steps.size


def test_one_data_set_has_the_plan_of_a_run_on_it_alone():
    alone = batch_plan.plan(LABELS, BATCH, seed=5, epoch=2)
    assert np.array_equal(batch_plan.plan_together({"a": LABELS}, (), BATCH, seed=5, epoch=2), alone)


def test_plan_of_several_data_sets_is_a_function_of_seed_and_epoch():
    def plan(seed: int, epoch: int) -> list[list[int]]:
        return batch_plan.plan_together({"a": LABELS, "b": LABELS}, (0.4, 0.6), BATCH, seed, epoch).tolist()

    assert plan(0, 1) == plan(0, 1)
    assert plan(0, 1) != plan(0, 2)
    assert plan(0, 1) != plan(1, 1)


def test_data_set_with_too_few_identities_for_its_share_is_named():
    labels = {"large": LABELS, "small": np.repeat([0, 1], 4)}
    batch = BatchConfig(size=16, samples_per_identity=2)
    with pytest.raises(
        BatchPlanError, match=r"'small' has 2 training identities, .* needs 4; .*data\.shares"
    ):
        batch_plan.plan_together(labels, (0.5, 0.5), batch, seed=0, epoch=0)
