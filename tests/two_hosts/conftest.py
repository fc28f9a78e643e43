from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from experiments import recipes
from experiments.experiment_config import ExperimentConfig
from experiments.run import lifecycle, run_data
from experiments.run.lifecycle import OnReport
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from stmi.clip.loading import load_clip
from tests import tiny_clip
from tests.experiments import small_run
from tests.mlflow_server import free_port, serving
from tests.two_hosts.machine import missing_requirement
from tests.two_hosts.ray_hosts import RayHosts

RECIPE = "rgbnt201-paper"
"""Unlike the demo's, a recipe that makes no tables, but finds those of the catalog."""
SETTINGS = (
    "data.dataset=synthetic_person",
    *(setting for setting in small_run.SETTINGS if not setting.startswith("data.")),
    "optim.optimizer=adamw",
    "optim.learning_rate=0.0008",
    "train.precision=float32",
    # So each node embeds some of the test samples.
    "train.evaluation_batch=1",
)


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """A small CLIP beside the disks, as in the image of a container."""
    return tiny_clip.write(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def local_workspace(clip, tmp_path_factory) -> Path:
    """A folder with the tables of a few rendered people, in its catalog."""
    workspace = tmp_path_factory.mktemp("local")
    small_run.configured(clip, workspace)
    return workspace


@pytest.fixture(scope="session")
def local(clip, local_workspace) -> RunFolder:
    """The run of the tests, trained by one process on one disk."""
    config = recipes.resolve(RECIPE, [*SETTINGS, f"model.clip.source={clip}"])
    return train_alone(config, local_workspace, local_workspace)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[RayHosts]:
    """One cluster for all tests; starting it takes 20 seconds."""
    if reason := missing_requirement():
        pytest.skip(f"hosts with disks of their own need root on Linux, and util-linux: {reason}")
    hosts = RayHosts(tmp_path_factory.mktemp("hosts"))
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[str]:
    """An MLflow server that all machines reach."""
    folder = tmp_path_factory.mktemp("mlflow")
    with serving(f"sqlite:///{folder / 'mlflow.db'}", folder, free_port()) as uri:
        # Artifacts go through the server, since the machines do not share its disk.
        mlflow.MlflowClient(uri).create_experiment(RECIPE, f"mlflow-artifacts:/{RECIPE}")
        yield uri


@pytest.fixture
def hosts(cluster) -> RayHosts:
    """The cluster, with both nodes up and their disks empty."""
    cluster.recover()
    return cluster


@pytest.fixture(scope="session")
def options(cluster, clip, local_workspace) -> list[str]:
    """Recipe, settings and catalog of the run, as options of a script; the catalog is in the object store."""
    return upload_catalog(cluster, clip, local_workspace)


def train_alone(
    config: ExperimentConfig, tables: Path, workspace: Path, on_report: OnReport = lambda facts: None
) -> RunFolder:
    """Train a run in one process, as what the hosts do is held against.

    Args:
        config: Its settings.
        tables: The workspace with its tables.
        workspace: Where the run goes.
        on_report: As in `lifecycle.run`.
    """
    options = RunOptions.resolve(workspace, str(tables / "catalog")).without_tracking()
    read = run_data.prepare_tables(config, load_clip(config.clip_source), options)
    return RunFolder(lifecycle.run(config, read, options, threads=1, on_report=on_report).folder)


def upload_catalog(cluster: RayHosts, clip: Path, local_workspace: Path) -> list[str]:
    """Copy the catalog of `local_workspace` to a cluster's object store; returns `options`."""
    cluster.store.upload(local_workspace / "catalog", "catalog")
    settings = [part for text in (*SETTINGS, f"model.clip.source={clip}") for part in ("--set", text)]
    return ["--recipe", RECIPE, *settings, "--catalog", cluster.store.uri("catalog")]
