import numpy as np
import pytest
from pydantic import ValidationError

from stmi import batch_plan
from stmi.batch_plan import BatchPlanError
from stmi.config import BatchConfig

LABELS = np.repeat(np.arange(10), [3, 4, 5, 9, 4, 4, 8, 2, 6, 4])
BATCH = BatchConfig(size=12, samples_per_identity=4)


def test_every_batch_holds_p_identities_with_k_samples_each():
    steps = batch_plan.plan(LABELS, BATCH, seed=0, epoch=0)
    for rows in steps:
        groups = LABELS[rows].reshape(3, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 3


def test_sample_is_repeated_only_where_an_identity_is_short_of_k():
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
