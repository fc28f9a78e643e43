import argparse

import pytest
from ray.train import ScalingConfig

from experiments import train
from experiments.command_line import worker_range
from experiments.experiment_config import ConfigError
from experiments.recipes import resolve
from experiments.run.elastic_workers import find_sizes
from experiments.run.workers.trainer import FittingScalingPolicy


def test_number_of_workers_is_a_number_or_a_range():
    assert worker_range("4") == (None, 4)
    assert worker_range("2-8") == (2, 8)
    for wrong in ("8-2", "2-", "two", "2-4-8", ""):
        with pytest.raises(
            argparse.ArgumentTypeError, match="expected a number such as 4, or a range such as 2-8"
        ):
            worker_range(wrong)


def test_run_has_the_name_of_one_with_the_most_workers():
    config = train.configure(train.parser().parse_args(["--workers", "2-8"]))
    assert config.train.workers == 8
    assert config == train.configure(train.parser().parse_args(["--workers", "8"]))


def test_workers_are_as_many_as_share_the_batch_evenly():
    config = resolve("demo", ["train.workers=8", "batch.size=48"])
    assert find_sizes(config, 2) == [2, 3, 4, 6, 8]
    parted = resolve("demo", ["train.workers=8", "batch.size=48", "train.micro_batches=3"])
    assert find_sizes(parted, 2) == [2, 4, 8]


@pytest.mark.parametrize(("room", "workers"), [(1, 0), (2, 2), (5, 4), (7, 6), (8, 8), (30, 8)])
def test_no_other_number_is_started_however_much_room_there_is(room, workers):
    policy = FittingScalingPolicy(
        ScalingConfig(num_workers=(2, 8), resources_per_worker={"CPU": 1.0}), [2, 3, 4, 6, 8]
    )
    assert policy._count_possible_workers({"node": {"CPU": float(room)}}) == workers


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--workers", "5-8"],
            "5 workers cannot share batch.size=48.*begin the range with one of 1, 2, 3, 4, 6, 8",
        ),
        (["--workers", "0-8"], "0 workers cannot share"),
        (["--workers", "2-8", "--set", "train.workers=4"], "contradicts --set train.workers"),
        (["--workers", "2-4", "--set", "data.placement=by_identity"], "ask for one number"),
    ],
)
def test_range_that_cannot_be_trained_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        train.configure(train.parser().parse_args(given))
