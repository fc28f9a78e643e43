from types import SimpleNamespace

import pytest

from experiments.run.workers.slow_worker import find_slow, worker_times


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([2.0], None),
        ([2.0, 2.9], None),
        ([2.0, 3.1], 1),
        ([3.1, 2.0], 0),
        ([2.0, 2.1, 1.9, 4.0], 3),
        # Most are on slower machines: none of them is the one to blame.
        ([1.0, 3.0, 3.0, 3.1], None),
        ([0.0, 0.0], None),
    ],
)
def test_one_worker_is_slow_where_it_takes_much_longer_than_the_others(seconds, slow):
    assert find_slow(seconds) == slow


def test_slow_worker_is_named_with_its_host():
    session = SimpleNamespace(gather=lambda own: [(2.0, "n1"), (9.0, "n2")])
    assert worker_times(session, 2.0) == {
        "worker_seconds": [2.0, 9.0],
        "slow_worker": {"rank": 1, "host": "n2"},
    }


def test_worker_alone_is_not_slow():
    session = SimpleNamespace(gather=lambda own: [own])
    assert worker_times(session, 2.00004) == {"worker_seconds": [2.0]}
