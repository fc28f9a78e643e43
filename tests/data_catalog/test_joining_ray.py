import pytest
import ray

from data_catalog import ray_session
from data_catalog.ray_session import ensure_ray


@pytest.fixture
def joined(monkeypatch):
    """How Ray is asked to join a cluster."""
    asked = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setattr(ray_session, "WORKER_VARIABLES", {"PATIENCE": "20"})
    return asked


def test_workers_of_a_cluster_import_from_where_this_process_does(joined, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/tree:/other")
    ensure_ray()
    assert joined["address"] == "head:6379"
    assert joined["runtime_env"] == {"env_vars": {"PYTHONPATH": "/tree:/other", "PATIENCE": "20"}}


def test_submitted_job_keeps_the_tree_that_it_came_with(joined, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/tree")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    ensure_ray()
    assert joined["runtime_env"] == {"env_vars": {"PATIENCE": "20"}}
