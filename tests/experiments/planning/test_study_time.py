import itertools
from dataclasses import replace

import pytest

from experiments.experiment_config import ConfigError
from experiments.planning.expected_time import Workload, expect_time
from experiments.planning.study_time import Assumptions, RunLeft, expect_study_time

WORKLOAD = Workload(
    steps=100,
    batch=10,
    step_flops=3 * 10**13,
    embedded=1000,
    forward_flops=10**13,
    workers=1,
    precision="bfloat16",
    peak_bytes=2**30,
)
ALONE = expect_time(WORKLOAD, "A100-80GB").seconds


def times(runs, devices, **assumed):
    return expect_study_time(runs, "A100-80GB", devices, Assumptions(**assumed))


def parts(found):
    return [
        found.training_hours,
        found.evaluation_hours,
        found.run_start_hours,
        found.machine_start_hours,
        found.idle_hours,
    ]


def test_runs_of_equal_length_take_turns_and_all_devices_are_paid_until_the_last_ends():
    found = times([RunLeft(WORKLOAD, 1)] * 3, 2, start_seconds=10, machine_seconds=50, price=3)
    assert found.at_once == 2
    assert found.seconds == pytest.approx(50 + 2 * (10 + ALONE))
    assert found.device_hours == pytest.approx(2 * found.seconds / 3600)
    assert found.price == pytest.approx(3 * found.device_hours)
    # 100 * 10 samples at 3 parts, and 1000 at one.
    assert found.training_hours == pytest.approx(3 * 3 / 4 * ALONE / 3600)
    assert found.evaluation_hours == pytest.approx(3 * 1 / 4 * ALONE / 3600)
    assert found.run_start_hours == pytest.approx(3 * 10 / 3600)
    assert found.machine_start_hours == pytest.approx(2 * 50 / 3600)
    assert found.idle_hours == pytest.approx((10 + ALONE) / 3600)
    assert sum(parts(found)) == pytest.approx(found.device_hours)


def test_each_run_starts_as_soon_as_there_is_room():
    """Against a clock that ticks: at each tick, free places take the next runs."""
    shares = [0.9, 0.2, 0.5, 0.1, 1.0, 0.3]
    for devices in (1, 2, 3, 6, 9):
        waiting, running, clock = [round(1000 * share) for share in shares], [], 0
        while waiting or running:
            running = [left - 1 for left in running if left > 1] if clock else []
            while waiting and len(running) < devices:
                running.append(waiting.pop(0))
            clock += 1 if running else 0
            if not running:
                break
        found = times([RunLeft(WORKLOAD, s) for s in shares], devices, start_seconds=0, machine_seconds=0)
        assert found.seconds == pytest.approx(clock * ALONE / 1000)
        assert sum(parts(found)) == pytest.approx(found.device_hours)


def test_what_is_done_already_costs_nothing_again():
    half, done = RunLeft(WORKLOAD, 0.5), RunLeft(WORKLOAD, 0)
    assert times([half, done], 1, start_seconds=10).seconds == pytest.approx(600 + 10 + ALONE / 2)
    nothing = times([done, done], 8, price=2)
    assert (nothing.seconds, nothing.device_hours, nothing.price) == (0, 0, 0)


def test_a_run_of_several_workers_holds_a_gpu_for_each():
    several = RunLeft(replace(WORKLOAD, workers=4), 1)
    assert times([several] * 3, 8).at_once == 2
    assert times([several], 4, start_seconds=0, machine_seconds=0).training_hours == pytest.approx(
        times([RunLeft(WORKLOAD, 1)], 1, start_seconds=0, machine_seconds=0).training_hours
    )
    with pytest.raises(ConfigError, match="--devices 3: a run needs 4 of A100-80GB"):
        times([several], 3)
    halves = RunLeft(replace(WORKLOAD, gpus_per_worker=0.5), 1)
    assert times([halves] * 3, 1).at_once == 2


def test_the_only_device_is_never_idle_and_not_less_than_never_either():
    """The parts are rounded numbers: their sum can exceed the total by a bit, and "-0%" was printed."""
    for count in range(1, 60):
        found = times([RunLeft(WORKLOAD, 1)] * count, 1)
        assert 0 <= found.idle_hours < 1e-9


def test_runs_on_cpus_have_a_machine_each():
    found = expect_study_time(
        [RunLeft(replace(WORKLOAD, workers=4), 1)] * 2, "Xeon-2-cores", 2, Assumptions()
    )
    assert (found.at_once, found.idle_hours) == (2, pytest.approx(0, abs=1e-9))


def test_more_devices_are_never_slower_and_never_cheaper():
    runs = [RunLeft(WORKLOAD, 1)] * 7
    found = [times(runs, devices, price=1) for devices in (1, 2, 4, 7, 16)]
    assert all(one.seconds >= two.seconds for one, two in itertools.pairwise(found))
    assert all(one.price < two.price for one, two in itertools.pairwise(found))
