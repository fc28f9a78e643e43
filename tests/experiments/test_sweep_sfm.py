"""One sweep of seconds is shared by the tests; a killed one is compared with it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from data_catalog.storage.claims import claim
from experiments import sweep_sfm
from experiments.command_line import COME_AGAIN_STATUS
from experiments.run import run_data
from experiments.tracking.journal import Journal
from experiments.tracking.mlflow_store import local_store
from tests.experiments import small_run
from tests.mlflow_server import free_port, serving
from tests.postgresql import PASSWORD

ROOT = Path(__file__).parents[2]
DEAD_SERVER = "http://127.0.0.1:9"
TRIALS = 5


def arguments(clip, workspace, *extra):
    space = [
        "--search",
        "sfm.perturbation=zero-or-log:0.001:0.5",
        "--concurrent",
        "1",
        "--trials",
        str(TRIALS),
    ]
    return [*small_run.options(clip), "--workspace", str(workspace), "--json", *space, *extra]


def swept_by(clip, workspace, *extra):
    result = sweep_sfm.sweep(sweep_sfm.parser().parse_args(arguments(clip, workspace, *extra)))
    return json.loads(result.to_json())


def run_folder(workspace, trial):
    return Path(workspace) / "train" / trial["run"]


@pytest.fixture(scope="module")
def swept(ray_session, clip, workspace):
    return swept_by(clip, workspace)


def test_trials_are_numbered_valued_on_validation_and_begin_with_the_recipe(swept, workspace):
    trials = swept["trials"]
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    assert trials[0]["config"] == {
        "model.sfm.perturbation": 0.2,
        "model.str.tokens": 4,
        "model.sfm.sharing": "per_layer",
    }
    assert {trial["state"] for trial in trials} == {"finished", "pruned"}
    for trial in trials:
        events = Journal(run_folder(workspace, trial) / "journal.jsonl").epochs()
        validated = {str(e["epoch"]): e["validation"]["U"]["mAP"] for e in events if "validation" in e}
        assert trial["curve"] == validated
        assert trial["epochs"] == len(events) == (3 if trial["state"] == "finished" else 2)
        assert trial["value"] == (validated["3"] if trial["state"] == "finished" else None)
    assert not swept["resumed"]


def test_best_is_the_highest_on_validation_and_only_its_test_metrics_are_shown(swept, workspace):
    finished = [trial for trial in swept["trials"] if trial["value"] is not None]
    best = swept["best"]
    assert best["value"] == max(trial["value"] for trial in finished)
    result = json.loads((run_folder(workspace, best) / "result.json").read_text())
    assert best["test"]["mAP"] == result["metrics"]["U"]["mAP"]
    assert not any("test" in trial for trial in swept["trials"])


def test_cost_grows_with_the_tokens_and_the_front_has_the_cheapest_and_the_best(swept):
    by_tokens = sorted(swept["trials"], key=lambda trial: trial["config"]["model.str.tokens"])
    assert [t["cost"] for t in by_tokens] == sorted(t["cost"] for t in by_tokens)
    finished = [trial for trial in swept["trials"] if trial["value"] is not None]
    front = [trial["number"] for trial in swept["pareto"]]
    assert min(finished, key=lambda t: (t["cost"], -t["value"]))["number"] == front[0]
    assert swept["best"]["value"] == swept["pareto"][-1]["value"]


def test_mlflow_has_a_parent_with_pictures_and_a_child_for_each_run(swept, workspace):
    client = mlflow.MlflowClient(local_store(workspace))
    parent = client.get_run(swept["mlflow"]["run_id"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", swept["study"])
    assert parent.data.tags["stmi.kind"] == "sweep"
    assert parent.data.params["search.model.str.tokens"] == "int:1:16"
    best = client.get_metric_history(parent.info.run_id, "trial/best")
    assert [point.step for point in best] == list(range(TRIALS))
    assert best[-1].value == swept["best"]["value"]
    pictures = {item.path for item in client.list_artifacts(parent.info.run_id, "pictures")}
    names = ("history", "slice", "parallel_coordinates", "importance", "pareto")
    assert pictures == {f"pictures/{name}.png" for name in names}
    assert children(client, parent) == {
        trial["run"]: {"finished": "FINISHED", "pruned": "KILLED"}[trial["state"]]
        for trial in swept["trials"]
    }


def children(client, parent):
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    found = client.search_runs([parent.info.experiment_id], condition)
    return {child.data.tags["stmi.run"]: child.info.status for child in found}


def test_finished_sweep_is_shown_and_no_run_repeated(swept, clip, workspace):
    journals = {trial["run"]: run_folder(workspace, trial) / "journal.jsonl" for trial in swept["trials"]}
    before = {run: path.read_bytes() for run, path in journals.items()}
    again = swept_by(clip, workspace, "--resume")
    assert again["resumed"]
    assert again["trials"] == swept["trials"]
    assert {run: path.read_bytes() for run, path in journals.items()} == before


@pytest.mark.slow
def test_killed_sweep_goes_on_with_the_same_trials_and_is_logged_later(swept, clip, workspace, tmp_path):
    catalog = ["--catalog", str(workspace / "catalog")]
    # MLflow cannot be reached before the kill.
    lost = arguments(clip, tmp_path, *catalog, "--tracking-uri", DEAD_SERVER)
    kill_when_a_second_trial_has_a_checkpoint(lost, tmp_path)
    done, killed = threading.Event(), []
    killer = threading.Thread(target=kill_a_trial_after_its_first_checkpoint, args=(tmp_path, done, killed))
    killer.start()
    resumed = swept_by(clip, tmp_path, *catalog, "--resume")
    done.set()
    killer.join()
    assert killed
    assert resumed["resumed"]
    assert [trial_facts(trial) for trial in resumed["trials"]] == [
        trial_facts(trial) for trial in swept["trials"]
    ]
    client = mlflow.MlflowClient(local_store(tmp_path))
    parent = client.get_run(resumed["mlflow"]["run_id"])
    assert set(children(client, parent)) == {trial["run"] for trial in resumed["trials"]}


def trial_facts(trial):
    return {name: trial[name] for name in ("number", "state", "config", "value", "curve", "run")}


def kill_when_a_second_trial_has_a_checkpoint(lost, workspace):
    process = subprocess.Popen(
        [sys.executable, "experiments/sweep_sfm.py", *lost],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    try:
        while len(runs_with_a_checkpoint(workspace)) < 2:
            assert time.monotonic() < deadline, "no second trial had a checkpoint in time"
            assert process.poll() is None, "the sweep ended before it could be killed"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def runs_with_a_checkpoint(workspace):
    return {
        path.parent.name
        for path in Path(workspace).glob("train/*/journal.jsonl")
        if any(event.get("checkpoint") for event in Journal(path).read())
    }


def kill_a_trial_after_its_first_checkpoint(workspace, done, killed):
    before = runs_with_a_checkpoint(workspace)
    while not done.wait(0.01):
        if runs_with_a_checkpoint(workspace) > before:
            # Only those of this process: others may be sweeping on this machine.
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "ray::ImplicitFunc" in " ".join(process.cmdline()[:1]):
                        process.kill()
                        killed.append(process)
                        return


@pytest.mark.slow
def test_sweep_that_gets_sigterm_stores_the_next_step_of_its_trials_and_goes_on(
    swept, clip, workspace, tmp_path, capsys
):
    given = ["--catalog", str(workspace / "catalog"), "--set", "train.epochs=5", "--trials", "2"]
    options = arguments(clip, tmp_path, *given, "--no-early-stopping")

    def terminate_when_a_trial_trains():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(Journal(path).last("untrained") for path in tmp_path.glob("train/*/journal.jsonl")):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=terminate_when_a_trial_trains)
    killer.start()
    assert sweep_sfm.main(options) == COME_AGAIN_STATUS
    killer.join()
    assert "was stopped by SIGTERM" in capsys.readouterr().err
    [path] = tmp_path.glob("train/*/journal.jsonl")
    *_, stored, interrupted = Journal(path).read()
    assert (stored["event"], interrupted["event"]) == ("checkpoint", "interrupted")
    assert stored["step"] == interrupted["step"] > 0
    assert sweep_sfm.main(options) == 0
    assert [trial["state"] for trial in json.loads(capsys.readouterr().out)["trials"]] == ["finished"] * 2
    assert Journal(path).last("resumed")["step"] == stored["step"]


@pytest.mark.slow
def test_more_trials_go_on_from_those_there_are_side_by_side(swept, clip, workspace):
    more = swept_by(clip, workspace, "--trials", str(TRIALS + 2), "--concurrent", "2")
    assert more["study"] == swept["study"]
    assert more["trials"][:TRIALS] == swept["trials"]
    assert len(more["trials"]) == TRIALS + 2
    assert {trial["state"] for trial in more["trials"]} == {"finished", "pruned"}
    client = mlflow.MlflowClient(local_store(workspace))
    assert len(client.get_metric_history(more["mlflow"]["run_id"], "trial/best")) == TRIALS + 2


@pytest.mark.slow
def test_two_objectives_stop_no_trial_and_find_the_runs_of_another_sweep(swept, clip, workspace):
    both = swept_by(clip, workspace, "--objectives", "mAP,cost", "--trials", "3")
    assert both["study"] != swept["study"]
    assert [trial["state"] for trial in both["trials"]] == ["finished"] * 3
    assert [trial["config"] for trial in both["trials"]] == [trial["config"] for trial in swept["trials"][:3]]
    for one, other in zip(both["trials"], swept["trials"], strict=False):
        assert one["value"] == other["value"] or other["state"] == "pruned"


@pytest.mark.slow
def test_diverging_trial_fails_with_its_reason_and_the_sweep_goes_on(swept, clip, workspace):
    only = [f"{name}=off" for name in ("sfm.perturbation", "str.tokens", "sfm.sharing")]
    only += ["optim.learning_rate=choice:0.0008,1e30"]
    searches = [part for text in only for part in ("--search", text)]
    hot = swept_by(clip, workspace, *searches, "--set", "optim.gradient_clip=0", "--trials", "4")
    by_rate = {trial["config"]["optim.learning_rate"]: trial for trial in hot["trials"]}
    assert by_rate[1e30]["state"] == "failed"
    assert "the loss of epoch 1, or its gradient, is not finite" in by_rate[1e30]["reason"]
    assert hot["best"]["config"] == {"optim.learning_rate": 0.0008}
    client = mlflow.MlflowClient(local_store(workspace))
    status = children(client, client.get_run(hot["mlflow"]["run_id"]))
    assert status == {by_rate[1e30]["run"]: "FAILED", by_rate[0.0008]["run"]: "FINISHED"}


@pytest.mark.slow
def test_sweep_is_complete_in_mlflow_once_its_killed_server_is_back(swept, clip, workspace, tmp_path):
    given = ["--seed", "5", "--trials", "3", "--name", "killed-server"]
    store, port, processes = f"sqlite:///{tmp_path / 'store.db'}", free_port(), []
    journal = Journal(workspace / "studies" / "killed-server" / "journal.jsonl")

    def kill_after_the_first_trial():
        while journal.last("trial") is None:
            time.sleep(0.05)
        server = psutil.Process(processes[0].pid)
        for process in (*server.children(recursive=True), server):
            process.kill()

    with serving(store, tmp_path / "server", port, processes.append) as uri:
        killing = threading.Thread(target=kill_after_the_first_trial)
        killing.start()
        interrupted = swept_by(clip, workspace, *given, "--tracking-uri", uri)
        killing.join()
        assert processes[0].wait() == -signal.SIGKILL
    assert not interrupted["missing"]
    with serving(store, tmp_path / "server", port) as uri:
        resumed = swept_by(clip, workspace, *given, "--tracking-uri", uri, "--resume")
        assert resumed["trials"] == interrupted["trials"]
        client = mlflow.MlflowClient(uri)
        parent = client.get_run(resumed["mlflow"]["run_id"])
        assert parent.info.status == "FINISHED"
        status = children(client, parent)
        expected = {"finished": "FINISHED", "pruned": "KILLED"}
        assert status == {trial["run"]: expected[trial["state"]] for trial in interrupted["trials"]}
        assert len(client.get_metric_history(parent.info.run_id, "trial/best")) == len(interrupted["trials"])


@pytest.mark.slow
def test_sweep_is_complete_though_its_database_is_started_anew(
    swept, clip, workspace, tmp_path, postgresql, capsys
):
    given = ["--seed", "6", "--trials", "4", "--concurrent", "2", "--no-early-stopping"]
    given += ["--name", "restarted-database", "--study-storage", postgresql.database("optuna")]
    journal = Journal(workspace / "studies" / "restarted-database" / "journal.jsonl")

    def restart_after_the_first_trial():
        while journal.last("trial") is None:
            time.sleep(0.05)
        postgresql.stop()
        time.sleep(1)
        postgresql.start()

    store = postgresql.database("mlflow")
    with serving(store, tmp_path / "server", free_port()) as uri:
        restarting = threading.Thread(target=restart_after_the_first_trial)
        restarting.start()
        found = swept_by(clip, workspace, *given, "--tracking-uri", uri)
        restarting.join()
        assert [trial["state"] for trial in found["trials"]] == ["finished"] * 4
    given[given.index("--trials") + 1] = "5"
    capsys.readouterr()
    assert sweep_sfm.main([*arguments(clip, workspace, *given), "--plan"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in planned["runs"]] == ["finished"] * 4 + ["to do"]
    # One more, logged to the database itself.
    more = swept_by(clip, workspace, *given, "--tracking-uri", store, "--resume")
    assert more["trials"][:4] == found["trials"]
    client = mlflow.MlflowClient(store)
    parent = client.get_run(more["mlflow"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert children(client, parent) == {trial["run"]: "FINISHED" for trial in more["trials"]}
    files = [file for file in workspace.rglob("*") if file.is_file()]
    assert not [file for file in files if PASSWORD.encode() in file.read_bytes()]


def refused(capsys, *given):
    capsys.readouterr()
    assert sweep_sfm.main(list(given)) == 2
    return capsys.readouterr().err


def test_sweep_that_another_process_runs_is_left_alone(swept, clip, workspace, capsys):
    with claim(workspace / "studies" / swept["study"]):
        assert "is being run by another process" in refused(capsys, *arguments(clip, workspace))


def test_name_of_another_sweep_is_refused(swept, clip, workspace, capsys):
    other = arguments(clip, workspace, "--name", swept["study"], "--set", "model.chi=off")
    assert "is another sweep" in refused(capsys, *other)


def test_resume_begins_nothing(swept, clip, workspace, capsys):
    error = refused(capsys, *arguments(clip, workspace, "--name", "new", "--resume"))
    assert "there is no sweep new" in error


def test_sweep_without_validation_identities_is_refused(swept, clip, workspace, capsys, monkeypatch):
    prepare_tables = run_data.prepare_tables

    def without_validation(*given):
        tables = prepare_tables(*given)
        del tables.views["val"]
        return tables

    monkeypatch.setattr(run_data, "prepare_tables", without_validation)
    assert "a sweep never chooses on test; ingest it with --validation-identities N" in refused(
        capsys, *arguments(clip, workspace, "--seed", "7")
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--trials", "0"], "--trials=0: expected a number from 1 to"),
        (["--search", "str.tokens=int:0:4"], "greater than or equal to 1"),
        (["--search", "train.epochs=int:2:4"], "early stopping compares trials at the same epoch"),
        (["--objectives", "mAP,cost", "--early-stopping"], "cut the cheap end off"),
        (["--set", "model.str.tokenz=3"], "did you mean model.str.tokens"),
        (["--set", "model.sfm=off"], "sfm.enabled is False, so all trials would be alike"),
        (["--name", "../x"], "--name=../x: it names a folder"),
        (["--name", "a/b"], "--name=a/b: it names a folder"),
        (["--study-storage", "nonsense"], "--study-storage nonsense is no database's URL"),
        (["--storage", "foo://x"], "foo://x cannot be opened"),
        (["--tracking-uri", "foo://bar"], "tracking URI 'foo://bar'"),
        (["--tracking-uri", "/some/folder"], "it is neither a server nor a database"),
        (["--workers", "0"], "--workers=0: at least 1 is needed"),
        (["--workers", "2", "--set", "train.workers=4"], "--workers=2: it contradicts --set train.workers"),
    ],
)
def test_impossible_sweep_is_refused_before_anything_starts(capsys, tmp_path, given, message):
    assert message in refused(capsys, "--workspace", str(tmp_path), *given)
    assert not list(tmp_path.iterdir())
