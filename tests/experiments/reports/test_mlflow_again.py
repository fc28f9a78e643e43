"""A workspace that is sent to an emptied store, or to a server, is there as it was in its first store."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import mlflow
import pytest

from data_catalog.storage import local_copies
from data_catalog.storage.folders import Folder
from experiments import report, sweep_sfm
from experiments.run import lifecycle
from experiments.run.run_description import note_start
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.studies.ablation.ablation import AblationStudy
from experiments.studies.ablation.ablation_spec import specify_ablation
from experiments.studies.ablation.rows import ABLATIONS
from experiments.studies.study_folder import StoredDescription, StoredRun, StudyFolder
from experiments.studies.sweep.sweep import SweepStudy
from experiments.studies.sweep.sweep_result import SweepResult
from experiments.tracking.mlflow_store import local_store, read_state
from tests import json_samples, kept_workspace
from tests.experiments import made_up, small_run
from tests.mlflow_server import free_port, serving

# Nothing listens on the discard port.
ENDED = "http://127.0.0.1:9"


def printed(name):
    return json.loads((json_samples.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


RUN, ABLATION, SWEEP = printed("train")["run"], printed("ablate")["study"], printed("sweep")["study"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The kept workspace after its run and studies were run again: nothing is trained, all is logged."""
    workspace = kept_workspace.unpack(tmp_path_factory.mktemp("kept"))
    settings = small_run.settings(kept_workspace.CLIP)
    options = RunOptions.resolve(workspace, tracking_uri=local_store(workspace))
    config, tables = small_run.configured(kept_workspace.CLIP, workspace)
    assert lifecycle.run(config, tables, options).run == RUN
    # As it was in the older version, without rows for rules of hyperedges.
    plan = specify_ablation([ABLATIONS["table4"]], "demo", [*settings, "model.chi.incidence=cosine"], 2)
    assert AblationStudy(plan, tables, options).run().study == ABLATION
    asked = [*small_run.options(kept_workspace.CLIP), "--trials", "3"]
    spec = sweep_sfm.specify(sweep_sfm.parser().parse_args(asked))
    assert SweepStudy(spec, tables, options).run().study == SWEEP
    return workspace


@pytest.fixture
def workspace(logged, tmp_path):
    """A copy, in which each test may change what it likes."""
    return shutil.copytree(logged, tmp_path / "ws", symlinks=True)


def contents(uri):
    """All runs of a store, with all that distinguishes them except ids and the store's own places."""
    client = mlflow.MlflowClient(uri)
    experiments = client.search_experiments()
    runs = client.search_runs([experiment.experiment_id for experiment in experiments], max_results=1000)
    parents = {run.info.run_id: run.info.run_name for run in runs}
    return sorted((_content(client, run, parents) for run in runs), key=lambda run: json.dumps(run["tags"]))


def _content(client, run, parents):
    tags = dict(run.data.tags)
    parent = tags.pop("mlflow.parentRunId", None)
    for own in ("stmi.folder", "stmi.writer", "mlflow.user", "mlflow.source.name"):
        tags.pop(own, None)
    names = [item.path for item in client.list_artifacts(run.info.run_id)]
    pictures = [item.path for item in client.list_artifacts(run.info.run_id, "pictures")]
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "parent": parents.get(parent),
        "tags": tags,
        "params": run.data.params,
        "metrics": {
            name: sorted(
                (p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, name)
            )
            for name in run.data.metrics
        },
        "files": sorted(names),
        "pictures": {
            path: Path(client.download_artifacts(run.info.run_id, path)).read_bytes() for path in pictures
        },
    }


def send(workspace, *options, status=0):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        arguments = ["--mlflow-again", "--workspace", workspace, *options, "--json"]
        assert report.main([str(argument) for argument in arguments]) == status
    return json.loads(out.getvalue())


@pytest.fixture(params=["emptied", "server"])
def store(request, workspace):
    """A store without runs: the workspace's own after it was removed, or a server."""
    if request.param == "server":
        folder = workspace.parent / "server"
        with serving(f"sqlite:///{workspace.parent}/server.db", folder, free_port()) as address:
            yield address
        return
    (workspace / "mlflow.db").unlink()
    shutil.rmtree(workspace / "mlartifacts")
    yield local_store(workspace)


@pytest.mark.slow
def test_store_gets_runs_children_and_pictures_as_the_first_store_had_them(logged, workspace, store):
    expected = contents(local_store(logged))
    assert len(expected) == 1 + (1 + 10) + (1 + 3)
    assert {name for run in expected for name in run["pictures"]} > {
        "pictures/cmc.png",
        "pictures/table4.png",
    }
    sent = send(workspace, "--tracking-uri", store, "--study", SWEEP)
    assert (sent["runs"], sent["studies"], sent["wrong"]) == ([], {SWEEP: 3}, {})
    # As a process leaves it that is killed between sending the first events of a child and noting it.
    child = next(workspace.glob(f"train/*/mlflow-{SWEEP}.json"))
    lost = {"run_id": None, "described": False, "sent": 0, "files": {}, "status": ""}
    child.write_text(json.dumps(json.loads(child.read_text()) | lost))
    sent = send(workspace, "--tracking-uri", store)
    assert (sent["runs"], sent["studies"], sent["wrong"]) == ([RUN], {ABLATION: 10, SWEEP: 3}, {})
    assert contents(store) == expected
    study = StudyFolder.of(workspace, SWEEP)
    for folder in (Folder(workspace) / "train" / RUN, study):
        assert read_state(folder).uri == store
    assert study.read_result(SweepResult).mlflow.uri == store
    assert send(workspace, "--tracking-uri", store) == sent
    assert contents(store) == expected


@pytest.fixture
def begun(tmp_path):
    """A workspace with two runs that have begun; one was killed, and one stopped itself."""
    begin_runs(Folder(tmp_path / "ws"))
    return tmp_path / "ws"


def begin_runs(workspace):
    for name in ("killed", "stopped"):
        run = RunFolder(workspace / "train" / name)
        made_up.write_config(run)
        note_start(run.journal)
    run.journal.append("stopped", error="the loss is not finite")


def test_study_that_was_interrupted_is_sent_from_object_storage(object_storage, tmp_path, monkeypatch):
    monkeypatch.setenv(local_copies.FOLDER_VARIABLE, str(tmp_path / "cache"))
    workspace = Folder(object_storage("interrupted"))
    begin_runs(workspace)
    study = StudyFolder(workspace / "studies" / "s")
    study.describe_once(StoredDescription(recipe="demo", parameters={"seeds": "1"}, tags={"stmi.study": "s"}))
    study.write_runs({"killed": StoredRun(name="the run", tags={"stmi.seed": "0"}, status="KILLED")})
    store = f"sqlite:///{tmp_path}/new.db"
    sent = send(workspace, "--tracking-uri", store)
    assert (sent["runs"], sent["studies"], sent["wrong"]) == (["stopped"], {"s": 1}, {})
    found = {run["name"]: (run["parent"], run["status"]) for run in contents(store)}
    assert found == {"s": (None, "KILLED"), "the run": ("s", "KILLED"), "demo seed=0": (None, "FAILED")}
    assert study.read_runs()["killed"].status == "KILLED"


def test_run_that_has_not_finished_is_sent_with_how_it_ended(begun):
    assert send(begun)["runs"] == ["killed", "stopped"]
    status = {run["tags"]["stmi.run"]: run["status"] for run in contents(local_store(begun))}
    assert status == {"killed": "KILLED", "stopped": "FAILED"}


def test_run_alone_is_sent_when_it_is_named(begun):
    assert send(begun, "--run", begun / "train" / "killed")["runs"] == ["killed"]
    assert len(contents(local_store(begun))) == 1


def test_what_cannot_be_sent_has_a_reason_and_the_rest_is_sent(begun):
    (begun / "studies" / "older").mkdir(parents=True)
    (begun / "train" / "stopped" / "config.json").write_text("{")
    with RunFolder(begun / "train" / "killed").claimed(AssertionError()):
        sent = send(begun, status=1)
    assert sent["runs"] == []
    assert sent["wrong"].keys() == {"older", "stopped", "killed"}
    assert "run the command that started it again" in sent["wrong"]["older"]
    assert "another process" in sent["wrong"]["killed"]


def test_server_that_does_not_answer_is_one_line(begun, capsys):
    assert report.main(["--mlflow-again", "--workspace", str(begun), "--tracking-uri", ENDED]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: MLflow at {ENDED} cannot be reached")
    assert not list(begun.rglob("mlflow*.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "page.html"], "--out=page.html belongs to the page of a study"),
        (["--study", "nosuch"], "study 'nosuch' is not in workspace"),
        (["--workspace", "/nosuch"], "--workspace=/nosuch does not exist or is empty"),
        (["--tracking-uri", "ftp://x"], "MLflow's tracking URI 'ftp://x'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(begun, capsys, options, message):
    assert report.main(["--mlflow-again", "--workspace", str(begun), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
