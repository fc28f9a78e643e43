import json

import mlflow
import pytest

from experiments.recipes import ConfigError, resolve
from experiments.run.code_version import code_version, environment
from experiments.run.run_folder import RunFolder
from experiments.studies.study import Member, StudyFolder, StudyMirror, watched
from experiments.tracking.mlflow_logger import Mirror, local_store


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
        # Neither the run nor its identity is known to the store that stands there now.
        lost = {"run_id": "0" * 32, "identity": f"lost {state.name}"}
        state.write_text(json.dumps(json.loads(state.read_text()) | lost))
    again = mirror_of(tmp_path)
    again.sync([member])
    client = mlflow.MlflowClient(local_store(tmp_path))
    parent = client.get_run(again.parent.run_id)
    assert parent.info.run_id not in (first.parent.run_id, "0" * 32)
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    (child,) = client.search_runs([parent.info.experiment_id], condition)
    assert child.info.run_name == "the run"


def test_child_is_closed_when_its_run_is_finished_and_the_study_goes_on(member, tmp_path):
    mirror = mirror_of(tmp_path)
    client = mlflow.MlflowClient(local_store(tmp_path))

    def status():
        condition = f"tags.`mlflow.parentRunId` = '{mirror.parent.run_id}'"
        experiment = mirror.parent.experiment_id
        return [run.info.status for run in client.search_runs([experiment], condition)]

    mirror.sync([member])
    mirror.close([member])
    assert status() == ["RUNNING"]
    (member.folder.path / "result.json").write_text("{}")
    mirror.close([member])
    assert status() == ["FINISHED"]
    assert client.get_run(mirror.parent.run_id).info.status == "RUNNING"


def test_study_that_is_interrupted_is_shown_as_that(member, tmp_path):
    mirror = mirror_of(tmp_path)
    mirror.sync([member])
    client = mlflow.MlflowClient(local_store(tmp_path))
    with pytest.raises(KeyboardInterrupt), watched([member], mirror, lambda bar: None, 1, "run"):
        raise KeyboardInterrupt
    condition = f"tags.`mlflow.parentRunId` = '{mirror.parent.run_id}'"
    (child,) = client.search_runs([mirror.parent.experiment_id], condition)
    parent = client.get_run(mirror.parent.run_id)
    assert (parent.info.status, child.info.status) == ("FAILED", "KILLED")
    mirror.reopen()
    assert client.get_run(mirror.parent.run_id).info.status == "RUNNING"


def test_server_that_does_not_answer_is_waited_for_once_a_round(member, tmp_path, monkeypatch):
    mirror, asked = mirror_of(tmp_path), []
    mirror.sync([member])

    def hang(self):
        asked.append(self.facts.name)
        raise TimeoutError

    monkeypatch.setattr(Mirror, "_client", hang)
    member.folder.journal.append("epoch", epoch=1, losses={}, seconds={}, learning_rate=0.1)
    mirror.folder.journal.append("row", name="A")
    again = mirror_of(tmp_path)
    again.sync([member] * 3)
    assert asked == ["s"]
    again.finish([member] * 3, {"r": "FINISHED"}, [], complete=True)
    assert asked == ["s", "s", "s"]


def test_folder_of_another_study_is_refused(tmp_path):
    folder = StudyFolder.of(tmp_path, "s")
    folder.belong_to("sweep", "a")
    folder.belong_to("sweep", "b")
    folder.journal.append("trial", number=0)
    folder.belong_to("sweep", "b")
    for kind, mark in (("sweep", "a"), ("ablation", "b")):
        with pytest.raises(ConfigError, match=r"study 's' in .* is another sweep .* another --name"):
            folder.belong_to(kind, mark)
