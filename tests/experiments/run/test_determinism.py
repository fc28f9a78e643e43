import os
import warnings
from unittest.mock import MagicMock

import pytest
import torch

from experiments.run.workers.determinism import deterministic_algorithms
from experiments.run.workers.reporter import Clock, Reporter


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


def test_attention_on_a_gpu_has_no_fused_kernel_and_a_warning_of_one_names_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    fused = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
    with deterministic_algorithms() as names:
        assert not any(is_enabled() for is_enabled in fused)
        assert torch.backends.cuda.math_sdp_enabled()
        # What PyTorch warns of where algorithms that are not deterministic are let through.
        warnings.warn("Flash Attention defaults to a non-deterministic algorithm. To", stacklevel=1)
    assert names == {"Flash Attention"}
    assert all(is_enabled() for is_enabled in fused)


def test_worker_reports_what_has_no_deterministic_algorithm():
    session = MagicMock()
    with deterministic_algorithms() as names:
        reporter = Reporter(session, Clock(), 0.0, [], names)
        reporter.report("untrained")
        put()
        reporter.report("epoch")
    first, second = (call.args[0] for call in session.report.call_args_list)
    assert "not_deterministic" not in first
    assert second["not_deterministic"] == ["put_"]
