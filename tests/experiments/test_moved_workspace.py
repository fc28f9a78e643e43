"""A workspace that was copied has places of its own: nothing goes into the folder that it was copied from."""

import contextlib
import shutil
import sqlite3

import pytest

from data_catalog.storage.folders import Folder
from experiments.run.run_folder import RunFolder
from experiments.studies.study_folder import StudyFolder
from experiments.studies.sweep.sweep_result import SweepResult
from experiments.tracking.mlflow_store import (
    MlflowRun,
    MlflowState,
    local_store,
    open_local_store,
    read_state,
)
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


@pytest.mark.parametrize("change", [shutil.copytree, shutil.move])
def test_record_of_a_run_names_mlflows_file_of_the_workspace_that_it_is_in(original, tmp_path, change):
    folder = Folder(original / "train" / "run")
    state = MlflowState(uri=local_store(original), run_id="1")
    folder.write("mlflow.json", state.portable(folder).to_json())
    assert "original" not in folder.read("mlflow.json").decode()
    change(original, tmp_path / "new")
    moved = RunFolder(tmp_path / "new" / "train" / "run")
    assert moved.mlflow.uri == local_store(tmp_path / "new")
    assert moved.mlflow.run_id == "1"


@pytest.mark.parametrize("change", [shutil.copytree, shutil.move])
def test_result_of_a_study_names_mlflows_file_of_the_workspace_that_it_is_in(original, tmp_path, change):
    folder, logged = StudyFolder.of(original, "s"), MlflowRun(uri=local_store(original), run_id="1")
    folder.write_result(made_up.sweep_result().model_copy(update={"mlflow": logged}))
    change(original, tmp_path / "new")
    read = StudyFolder.of(tmp_path / "new", "s").read_result(SweepResult)
    assert read.mlflow == logged.model_copy(update={"uri": local_store(tmp_path / "new")})


def test_absolute_path_of_an_older_version_is_that_of_the_workspace_once_it_is_gone(original, tmp_path):
    folder = Folder(tmp_path / "new" / "train" / "run")
    own = local_store(tmp_path / "new")
    for uri, expected in (
        (local_store(tmp_path / "gone"), own),
        (local_store(original), local_store(original)),
        ("sqlite:////gone/other.db", "sqlite:////gone/other.db"),
        ("http://lab:5000/mlflow.db", "http://lab:5000/mlflow.db"),
    ):
        folder.write("mlflow.json", MlflowRun(uri=uri).to_json())
        assert read_state(folder).uri == expected
