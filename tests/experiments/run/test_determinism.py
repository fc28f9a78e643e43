import os
import warnings
from unittest.mock import MagicMock

import pytest
import torch

from experiments.run.workers.determinism import deterministic_algorithms
from experiments.run.workers.session import RayTrainSession


def put():
    # It has no deterministic algorithm on any device.
    return torch.zeros(3).put_(torch.tensor([0, 1]), torch.ones(2))


def test_operations_without_a_deterministic_algorithm_run_and_are_named(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic_algorithms() as names:
        torch.ones(3).cumsum(0)
        assert names == set()
        assert put().tolist() == [1, 1, 0]
        assert names == {"put_"}
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_names_are_found_again_in_another_run_and_other_warnings_are_shown():
    def run():
        with deterministic_algorithms() as names:
            put()
            warnings.warn("something else", UserWarning, stacklevel=1)
        return names

    with pytest.warns(UserWarning, match="something else"):
        assert run() == {"put_"}


def test_worker_reports_what_has_no_deterministic_algorithm(monkeypatch):
    reported = []
    context = MagicMock(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("experiments.run.workers.session.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.train.report", lambda facts, **_: reported.append(facts))
    with deterministic_algorithms() as names:
        session = RayTrainSession(1, None, MagicMock(), names)
        session.report({"event": "untrained"}, None)
        put()
        session.report({"event": "epoch"}, None)
    assert reported == [{"event": "untrained"}, {"event": "epoch", "not_deterministic": ["put_"]}]
