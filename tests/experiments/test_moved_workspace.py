"""A workspace that was copied has places of its own: nothing goes into the folder that it was copied from."""

import contextlib
import shutil
import sqlite3

import pytest

from data_catalog.storage.folders import Folder
from experiments.tracking.mlflow_store import open_local_store
from tests.experiments import made_up


@pytest.fixture
def original(tmp_path):
    """A workspace whose store has experiments of the scripts, of a server, and of somebody else."""
    workspace = tmp_path / "original"
    workspace.mkdir()
    artifacts = (workspace / "mlartifacts").as_uri()
    with contextlib.closing(sqlite3.connect(workspace / "mlflow.db")) as store, store:
        store.execute("CREATE TABLE experiments (artifact_location TEXT)")
        store.execute("CREATE TABLE runs (artifact_uri TEXT)")
        for place in (artifacts, f"{artifacts}/12", "s3://lab/mlartifacts/3", "file:///else/where"):
            store.execute("INSERT INTO experiments VALUES (?)", [place])
            store.execute("INSERT INTO runs VALUES (?)", [f"{place}/run/artifacts"])
    return workspace


def places(workspace):
    with contextlib.closing(sqlite3.connect(workspace / "mlflow.db")) as store:
        return [
            {row[0] for row in store.execute(f"SELECT {column} FROM {table}")}
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"))
        ]


def test_artifacts_of_a_copied_workspace_are_looked_for_and_written_in_the_copy(original, tmp_path):
    before = places(original)
    shutil.copytree(original, tmp_path / "copy")
    open_local_store(Folder(tmp_path / "copy"))
    own = (tmp_path / "copy" / "mlartifacts").as_uri()
    expected = {own, f"{own}/12", "s3://lab/mlartifacts/3", "file:///else/where"}
    assert places(tmp_path / "copy") == [expected, {f"{place}/run/artifacts" for place in expected}]
    open_local_store(Folder(original))
    assert places(original) == before


def test_files_of_a_study_are_those_of_the_folder_that_it_is_in(tmp_path):
    names = {"history": "/kept/ws/studies/s/history.png", "slice": "slice.png"}
    result = made_up.sweep_result().model_copy(update={"files": names})
    located = result.located(Folder(tmp_path))
    assert located.files == {"history": f"{tmp_path}/history.png", "slice": f"{tmp_path}/slice.png"}
