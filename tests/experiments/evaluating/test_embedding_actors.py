import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_catalog.views.view_reader import open_view
from experiments.evaluating.embedding_actors import embed_on_cluster, in_order, share_cluster
from experiments.evaluating.evaluation_target import load_run
from experiments.run import evaluation
from experiments.run.run_result import RunError
from stmi.modality import Modality
from tests.tolerances import ROUNDING_FLOAT32

MISSING = [(), (Modality.RGB,)]


@pytest.fixture
def target(trained):
    """The trained run in float32, in batches of five: the last one is not full."""
    target = load_run(Path(trained["folder"]))
    settings = target.config.train.model_copy(update={"evaluation_batch": 5, "precision": "float32"})
    assert len(target.table) % 5
    return replace(target, config=target.config.model_copy(update={"train": settings}))


def embedded_here(target) -> list[dict[str, np.ndarray]]:
    view = open_view(target.table)
    return [
        evaluation.embed(target.model, view, 5, autocast=False, missing=absent).features for absent in MISSING
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actors", "lost"),
    [pytest.param(1, 0, id="one actor"), pytest.param(2, 1, id="two, of which one is lost")],
)
def test_any_number_of_actors_gives_the_embeddings_of_one_process(target, actors, lost, tmp_path):
    expected = embedded_here(target)
    if lost:
        target.model.register_forward_pre_hook(partial(_die_once, tmp_path / "died"))
    for features, here in zip(embed_on_cluster(target, MISSING, actors), expected, strict=True):
        assert features.keys() == here.keys()
        for name, values in here.items():
            assert features[name].shape == values.shape
            assert np.allclose(features[name], values, atol=ROUNDING_FLOAT32), name
    assert len(list(tmp_path.iterdir())) == lost


def _die_once(died: Path, *_) -> None:
    try:
        died.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_failure_of_an_actor_keeps_its_own_message(target):
    target.model.register_forward_pre_hook(_refuse)
    with pytest.raises(RunError, match=r"could not be embedded: the images are upside down$"):
        list(embed_on_cluster(target, MISSING, actors=1))


def _refuse(*_) -> None:
    raise ValueError("the images are upside down")


def blocks(*positions: list[int]) -> list[dict[str, np.ndarray]]:
    return [{"position": np.array(rows), "U": np.array(rows) * 10.0} for rows in positions]


def test_blocks_in_order_are_passed_on():
    passed = list(in_order(blocks([0, 1, 2], [3], [4, 5]), 6))
    assert [first for first, _ in passed] == [0, 3, 4]
    assert np.concatenate([columns["U"] for _, columns in passed]).tolist() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    "positions",
    [
        pytest.param(([0, 1], [4, 5]), id="a block is missing"),
        pytest.param(([0, 1], [2, 3]), id="the last block is missing"),
        pytest.param(([0, 1], [0, 1], [2, 3], [4, 5]), id="a block comes twice"),
        pytest.param(([2, 3], [0, 1], [4, 5]), id="blocks are swapped"),
        pytest.param(([0, 1], [2, 2], [3, 4, 5]), id="a row comes twice"),
        pytest.param(([0, 1], [2, 3], [4, 5, 6]), id="a row too many"),
    ],
)
def test_rows_that_are_missing_or_come_twice_are_refused(positions):
    with pytest.raises(RunError, match="Ray Data gave"):
        list(in_order(blocks(*positions), 6))


@pytest.mark.parametrize(
    ("machines", "actors", "expected"),
    [
        ([{"CPU": 2}], None, (1, {"num_cpus": 2})),
        ([{"CPU": 16}, {"CPU": 9}], None, (6, {"num_cpus": 4})),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 2}, {"CPU": 64}], None, (6, {"num_gpus": 1})),
        ([{"CPU": 16, "GPU": 4}], 3, (3, {"num_gpus": 1})),
        ([{"CPU": 2}], 1, (1, {"num_cpus": 2})),
        ([{"CPU": 2}], 3, (3, {"num_cpus": 0.6666})),
        ([{"CPU": 3}, {"CPU": 3}], 3, (3, {"num_cpus": 1.5})),
        ([{}, {"CPU": 0}, {"CPU": 8}], 2, (2, {"num_cpus": 4})),
    ],
)
def test_cluster_is_shared_among_the_actors(machines, actors, expected):
    assert share_cluster(machines, actors) == expected


def test_more_actors_than_gpus_are_refused():
    with pytest.raises(RunError, match=r"--workers=5, but the cluster has 4 GPUs"):
        share_cluster([{"CPU": 16, "GPU": 4}], 5)
