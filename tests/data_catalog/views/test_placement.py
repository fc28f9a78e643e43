import numpy as np
import pytest

from data_catalog.errors import CatalogError
from data_catalog.views.placement import assign_shards, count_identities, cut_by_identity


def test_shards_are_filled_with_whole_identities_in_order() -> None:
    identity = np.repeat([7, 3, 5, 9, 1], [4, 2, 3, 6, 2])
    # 1 and 3 have four samples together, 5 would make it seven; 9 alone is more than a shard.
    assert [shard.tolist() for shard in cut_by_identity(identity, 5)] == [[1, 3], [5], [7], [9]]


@pytest.mark.parametrize("samples_per_shard", [1, 7, 20, 1000])
def test_every_identity_is_in_one_shard_and_no_shard_is_too_large(
    samples_per_shard: int, rng: np.random.Generator
) -> None:
    identity = rng.integers(0, 50, 600)
    shards = cut_by_identity(identity, samples_per_shard)
    assert np.concatenate(shards).tolist() == sorted(set(identity.tolist()))
    samples = [int(np.isin(identity, shard).sum()) for shard in shards]
    for shard, filled in zip(shards, samples, strict=True):
        assert filled <= samples_per_shard or len(shard) == 1
    # Two neighbours that fit into one shard are in one.
    following = [int((identity == shard[0]).sum()) for shard in shards[1:]]
    for filled, next_identity in zip(samples, following, strict=False):
        assert filled + next_identity > samples_per_shard


def test_identities_of_a_shard_are_counted_in_order() -> None:
    assert count_identities(np.array([4, 2, 4, 4])) == [[2, 1], [4, 3]]


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 20])
def test_every_shard_goes_to_one_worker_and_all_have_about_as_much(
    workers: int, rng: np.random.Generator
) -> None:
    samples = rng.integers(1, 100, 20).tolist()
    assigned = assign_shards(samples, workers)
    assert len(assigned) == workers
    assert sorted(shard for shards in assigned for shard in shards) == list(range(20))
    assert all(shards == sorted(shards) for shards in assigned)
    filled = [sum(samples[shard] for shard in shards) for shards in assigned]
    # Without its smallest shard, no worker has more samples than the one with the fewest.
    for shards, total in zip(assigned, filled, strict=True):
        assert total - min(samples[shard] for shard in shards) <= min(filled)
    assert assign_shards(samples, workers) == assigned


def test_shards_of_one_size_are_dealt_evenly() -> None:
    assert assign_shards([128] * 6, 2) == [[0, 2, 4], [1, 3, 5]]


def test_more_workers_than_shards_are_refused() -> None:
    with pytest.raises(CatalogError, match=r"3 workers cannot share 2 shards .*--samples-per-shard"):
        assign_shards([128, 128], 3)
