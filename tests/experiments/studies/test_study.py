import json

import mlflow
import pytest

from experiments.recipes import resolve
from experiments.run.folder import RunFolder
from experiments.run.provenance import code_version, environment
from experiments.studies.study import Member, StudyFolder, StudyMirror
from experiments.tracking import local_store


@pytest.fixture
def member(tmp_path):
    """A run that has begun, as far as MLflow is told of it."""
    run = RunFolder(tmp_path / "train" / "r")
    run.path.mkdir(parents=True)
    config = resolve("demo")
    (run.path / "config.json").write_text(
        json.dumps({"config": config.model_dump(mode="json"), "tables": {}})
    )
    run.journal.append("started", environment=environment(), **code_version())
    return Member(run, config, "the run")


def mirror_of(tmp_path):
    folder = StudyFolder.of(tmp_path, "s")
    return StudyMirror(local_store(tmp_path), tmp_path, folder, "demo", {}, {"stmi.kind": "ablation"})


def test_children_follow_their_parent_into_a_store_that_was_replaced(member, tmp_path):
    first = mirror_of(tmp_path)
    first.sync([member])
    for state in (tmp_path / "studies/s/mlflow.json", member.folder.path / "mlflow-s.json"):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"run_id": "0" * 32}))
    again = mirror_of(tmp_path)
    again.sync([member])
    client = mlflow.MlflowClient(local_store(tmp_path))
    parent = client.get_run(again.parent.run_id)
    assert parent.info.run_id not in (first.parent.run_id, "0" * 32)
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    (child,) = client.search_runs([parent.info.experiment_id], condition)
    assert child.info.run_name == "the run"
