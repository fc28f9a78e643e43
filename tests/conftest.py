import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, keep tests that share expensive fixtures in one process: those of experiments."""
    for item in items:
        is_of_experiments = item.path.is_relative_to(ROOT / "tests" / "experiments")
        item.add_marker(pytest.mark.xdist_group("experiments" if is_of_experiments else "others"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray session for all tests that need one; starting it takes seconds."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Workers import the project and the tests from this tree, and report often: epochs here are short.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Ray ends a process that was idle for a second; actors of later tests would wait for new ones.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 2**20,
    )
    yield
    ray.shutdown()
