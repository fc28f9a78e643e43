import json

import mlflow
import pytest

from experiments.experiment_config import ConfigError
from experiments.reports.study_sources import find_study
from experiments.tracking.mlflow_store import MlflowState, local_store
from tests import json_samples

NAME = "demo-table4-2seeds-1a2b3c4d"
# Nothing listens on the discard port.
ENDED = "http://127.0.0.1:9"


@pytest.fixture
def workspace(tmp_path):
    """A workspace whose store has a study."""
    client = mlflow.MlflowClient(local_store(tmp_path))
    experiment = client.create_experiment("demo", (tmp_path / "mlartifacts").as_uri())
    tags = {"stmi.kind": "ablation", "stmi.study": NAME}
    run = client.create_run(experiment, tags=tags, run_name=NAME).info.run_id
    sample = json.loads((json_samples.FOLDER / "ablate.json").read_text())
    client.log_text(run, json.dumps(sample | {"kind": "ablation"}), "result.json")
    return tmp_path


def record(workspace, name, **state):
    folder = workspace / "studies" / name
    folder.mkdir(parents=True)
    (folder / "mlflow.json").write_text(MlflowState(**state).to_json())
    return folder / "mlflow.json"


def test_study_is_found_in_the_workspace_after_its_server_has_ended(workspace, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ENDED)
    study = find_study(None, workspace, NAME)
    assert (study.name, study.mlflow.uri) == (NAME, local_store(workspace))
    assert f"MLflow at {ENDED} cannot be read" in caplog.text
    assert f"it is read from {local_store(workspace)}" in caplog.text


def test_store_that_is_named_is_the_only_one_asked(workspace):
    with pytest.raises(ConnectionError, match=f"MLflow at {ENDED} cannot be read"):
        find_study(ENDED, workspace, NAME)


def test_message_says_where_a_missing_study_was_logged_and_what_to_type(workspace):
    path = record(workspace, "demo-other", uri="http://mlflow.example:5000", run_id="1" * 32)
    with pytest.raises(ConfigError) as refused:
        find_study(None, workspace, "demo-other")
    message = str(refused.value)
    assert f"it has {NAME}" in message
    assert f"{path} says that it was logged to http://mlflow.example:5000" in message
    assert "give --tracking-uri http://mlflow.example:5000; or run the command" in message


def test_study_that_its_own_store_lost_is_to_be_logged_again(workspace):
    record(workspace, "demo-lost", uri=local_store(workspace), run_id="1" * 32)
    with pytest.raises(ConfigError, match="To log it there, run the command that started the study again"):
        find_study(None, workspace, "demo-lost")


def test_study_that_its_workspace_has_as_a_whole_is_to_be_sent_again(workspace):
    folder = record(workspace, "demo-lost", uri="http://mlflow.example:5000", run_id="1" * 32).parent
    for name in ("result.json", "runs.json"):
        (folder / name).write_text("{}")
    command = f"--mlflow-again --study demo-lost --workspace {workspace} --tracking-uri"
    for asked in (local_store(workspace), f"sqlite:///{workspace}/new.db"):
        with pytest.raises(ConfigError) as refused:
            find_study(asked, workspace, "demo-lost")
        assert f"or run `python experiments/report.py {command} {asked}`" in str(refused.value)


def test_study_of_another_workspace_is_said_to_have_no_record_here(workspace):
    with pytest.raises(ConfigError, match=r"Nor is there a record of it .*--workspace"):
        find_study(None, workspace, "demo-elsewhere")


def test_settings_that_older_versions_logged_without_model_have_their_full_names(workspace):
    client = mlflow.MlflowClient(local_store(workspace))
    experiment = client.get_experiment_by_name("demo").experiment_id
    (parent,) = client.search_runs([experiment])
    tags = {"mlflow.parentRunId": parent.info.run_id, "stmi.run": "demo-seed0-1", "stmi.folder": "/elsewhere"}
    run = client.create_run(experiment, tags=tags, run_name="A").info.run_id
    logged = {"seed": "0", "report.feature": "U", "sfm.enabled": "True", "model.str.tokens": "4"}
    for name, value in logged.items():
        client.log_param(run, name, value)
    (recorded,) = find_study(local_store(workspace), workspace, NAME).runs
    assert recorded.parameters == {
        "seed": "0",
        "report.feature": "U",
        "model.sfm.enabled": "True",
        "model.str.tokens": "4",
    }
