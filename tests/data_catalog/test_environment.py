"""Environment variables of libraries: what is needed is set, what misleads removed, empty means unset."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from data_catalog.environment import REMOVED, SHARING, WAITING, prepare_environment
from data_catalog.ray_session import ray_address
from experiments.tracking.mlflow_store import resolve_tracking_uri

ROOT = Path(__file__).parents[2]
NICENESS = "RAY_worker_niceness"


@pytest.fixture(autouse=True)
def environment():
    """The environment is restored at the end."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    "name",
    ["RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI", "DATA_CATALOG_LOCAL_SECONDS", "ALL_PROXY"],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_an_unset_one(name, empty):
    os.environ[name] = empty
    prepare_environment()
    assert name not in os.environ


def test_empty_variables_that_mean_something_stay():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    prepare_environment()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_an_empty_address_is_none_also_where_nothing_was_prepared(tmp_path):
    os.environ |= {"RAY_ADDRESS": "", "MLFLOW_TRACKING_URI": ""}
    assert ray_address() == "local"
    assert resolve_tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize("setting", ["RAY_TRAIN_V2_ENABLED=0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV=1"])
def test_libraries_are_what_the_project_needs_whatever_the_user_has_set(setting):
    """As the libraries themselves read their variables, once they are imported."""
    program = """
from data_catalog.process import begin_process
begin_process()
from ray._private import ray_constants
from ray.train import FailureConfig
print(hasattr(FailureConfig(), "controller_failure_limit"), ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)
"""
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env=os.environ | {name: value},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("name", REMOVED)
def test_variables_that_spoil_a_run_are_removed(name):
    os.environ[name] = "1"
    prepare_environment()
    assert name not in os.environ


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_loopback_is_asked_without_a_proxy_and_so_is_what_the_user_excepts(name):
    os.environ[name] = "intern.example, localhost"
    for _ in range(2):
        prepare_environment()
    assert os.environ[name] == "intern.example,localhost,127.0.0.1,::1"


@pytest.fixture
def unset():
    """The user has set nothing about how processors are shared."""
    for name in (*WAITING, *SHARING):
        os.environ.pop(name, None)


def test_waiting_threads_soon_sleep_and_workers_have_their_share(unset):
    prepare_environment()
    assert {name: os.environ.get(name) for name in (*WAITING, *SHARING)} == dict.fromkeys(WAITING) | SHARING


@pytest.mark.parametrize("name", WAITING)
def test_how_threads_wait_is_left_to_a_user_who_says_so(name, unset):
    os.environ[name] = "1"
    prepare_environment()
    assert {other: os.environ.get(other) for other in WAITING} == dict.fromkeys(WAITING) | {name: "1"}
    assert os.environ[NICENESS] == "0"


def test_niceness_of_workers_is_left_to_a_user_who_says_so(unset):
    os.environ[NICENESS] = "10"
    prepare_environment()
    assert os.environ[NICENESS] == "10"
    assert os.environ["GOMP_SPINCOUNT"] == SHARING["GOMP_SPINCOUNT"]


def test_workers_of_ray_are_as_nice_as_the_command_that_asks_for_them(ray_session):
    """Beside another busy process of the same session, nicer ones would get next to nothing."""
    niceness = ray.remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote()
    assert ray.get(niceness) == os.getpriority(os.PRIO_PROCESS, 0)
