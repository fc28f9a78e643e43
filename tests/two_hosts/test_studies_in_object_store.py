"""Sweeps and ablations over two hosts, in a workspace in the object store."""

import json

import mlflow
import pytest

from experiments.experiment_config import parse
from experiments.tracking.journal import current_epochs
from tests.two_hosts.conftest import train_alone
from tests.two_hosts.machine import kill

SWEEP = ("--trials", "4", "--no-early-stopping")
TRIAL = "ImplicitFunc"
"""Ray's name of the actor that trains a trial."""


@pytest.fixture
def workspace(hosts, request):
    """URI of a workspace of the test's own."""
    return hosts.store.uri(f"workspaces/{request.node.name}")


@pytest.fixture
def at(options, workspace, server):
    """The options of a script that trains in the workspace and logs to the server."""
    return [*options, "--workspace", workspace, "--tracking-uri", server]


def prefix(hosts, workspace):
    return workspace.removeprefix(hosts.store.uri(""))


def events(hosts, workspace, run):
    """What the journal of a run in the object store says."""
    return hosts.store.events(f"{prefix(hosts, workspace)}/train/{run}")


def started_on(hosts, before):
    return {name: actors - before[name] for name, actors in hosts.actors().items()}


def children(server, result):
    client = mlflow.MlflowClient(server)
    parent = client.get_run(result["mlflow"]["run_id"])
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    found = client.search_runs([parent.info.experiment_id], condition)
    return parent.info.status, {child.data.tags["stmi.run"]: child.info.status for child in found}


def assert_complete(hosts, workspace, server, result, epochs=3):
    """Every trial is finished, its value is what its run's journal says, and MLflow has all of it."""
    assert result["missing"] == 0
    assert [trial["number"] for trial in result["trials"]] == [0, 1, 2, 3]
    for trial in result["trials"]:
        assert trial["state"] == "finished"
        journal = events(hosts, workspace, trial["run"])
        trained = current_epochs(journal)
        assert [event["epoch"] for event in trained] == list(range(1, epochs + 1))
        # A trial that a node took along is started again, and repeats what was after its last checkpoint.
        names = [event["event"] for event in journal]
        assert names.count("epoch") == epochs or names.count("started") > 1
        assert trial["value"] == trained[-1]["validation"]["U"]["mAP"]
        stored = json.loads(hosts.store.read(f"{prefix(hosts, workspace)}/train/{trial['run']}/result.json"))
        assert stored["status"] == "finished"
    finished = {trial["run"]: "FINISHED" for trial in result["trials"]}
    assert children(server, result) == ("FINISHED", finished)


def finished(hosts, workspace):
    """What the journals of the runs say that are finished."""
    names = hosts.store.names(f"{prefix(hosts, workspace)}/train")
    runs = [name.partition("/")[0] for name in names if name.endswith("/result.json")]
    return {run: events(hosts, workspace, run) for run in runs}


def started(hosts, workspace):
    """How often each run was started."""
    names = hosts.store.names(f"{prefix(hosts, workspace)}/train")
    runs = {name.partition("/")[0] for name in names if name.endswith("/journal.jsonl")}
    return {run: sum(event["event"] == "started" for event in events(hosts, workspace, run)) for run in runs}


def test_sweep_survives_the_kill_of_the_second_node(hosts, workspace, at, server):
    before = hosts.actors()
    sweep = hosts.spawn(hosts.first, "sweep_sfm.py", *at, *SWEEP, "--json")
    # The processes of both hosts have ended a trial, and go on with another one or wait for it.
    hosts.wait(sweep, lambda: len(finished(hosts, workspace)) >= 2)
    assert all(actors[TRIAL] for actors in started_on(hosts, before).values())
    hosts.kill_raylet(hosts.second)
    kept = finished(hosts, workspace)
    out, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    result = json.loads(out)
    assert_complete(hosts, workspace, server, result)
    assert {run: events(hosts, workspace, run) for run in kept} == kept
    assert {run: started(hosts, workspace)[run] for run in kept} == dict.fromkeys(kept, 1)
    # An empty machine makes the report, also after the workspace was renamed.
    renamed = f"{workspace}-renamed"
    hosts.store.rename(prefix(hosts, workspace), prefix(hosts, renamed))
    given = ["--study", result["study"], "--workspace", renamed, "--tracking-uri", server]
    report = hosts.result(hosts.boot("third"), "report.py", *given)
    assert not report["missing"]
    page = f"{prefix(hosts, renamed)}/studies/{result['study']}/report.html"
    assert report["page"] == hosts.store.uri(page)
    assert result["trials"][0]["run"] in hosts.store.read(page).decode()


@pytest.mark.fault
def test_ablation_has_the_numbers_of_one_process_though_its_storage_was_away(
    hosts, workspace, at, server, local
):
    before = hosts.actors()
    ablation = hosts.spawn(hosts.first, "ablate.py", *at, "--table", "3", "--seeds", "1", "--json")
    hosts.wait(ablation, lambda: finished(hosts, workspace))
    hosts.store.go_away(20)
    assert ablation.poll() is None
    out, errors = ablation.communicate(timeout=300)
    assert ablation.returncode == 0, errors
    result = json.loads(out)
    assert all(actors[TRIAL] for actors in started_on(hosts, before).values())
    assert result["wrong"] == {}
    assert all(row["runs"].keys() == {"0"} for row in result["rows"])
    runs = {row["runs"]["0"] for row in result["rows"]}
    assert len(runs) == 5
    assert started(hosts, workspace) == dict.fromkeys(runs, 1)
    assert children(server, result) == ("FINISHED", dict.fromkeys(runs, "FINISHED"))
    # The full model is the run that one process trained; its name is a digest of settings and data.
    (full,) = [row for row in result["rows"] if row["name"] == "SFM + STR + CHI"]
    assert full["runs"]["0"] == local.name
    expected = local.finished_result.metrics["U"]
    assert full["mAP"]["mean"] == expected.mean_average_precision
    assert full["rank5"]["mean"] == expected.rank5


def test_sweep_has_the_numbers_of_one_process_though_its_storage_was_away(
    hosts, workspace, at, server, local_workspace, tmp_path
):
    # A trial lasts longer than it takes to see that the second host trains one.
    epochs = 20
    long = ["--set", f"train.epochs={epochs}", "--set", "train.checkpoint_every=5"]
    sweep = hosts.spawn(hosts.first, "sweep_sfm.py", *at, *long, *SWEEP, "--json")

    def find_disturbed():
        """The run that the second host is training, and has epochs left of."""
        journals = hosts.store.journals(prefix(hosts, workspace))
        return [
            name
            for name, run in journals.items()
            if run[0]["environment"]["host"] == "second"
            and 1 <= [event["event"] for event in run].count("epoch") <= epochs - 5
        ]

    (disturbed,) = hosts.wait(sweep, find_disturbed)
    hosts.store.go_away(20)
    assert disturbed not in finished(hosts, workspace)
    out, errors = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, errors
    result = json.loads(out)
    assert_complete(hosts, workspace, server, result, epochs)
    assert started(hosts, workspace) == dict.fromkeys((trial["run"] for trial in result["trials"]), 1)
    run = f"{prefix(hosts, workspace)}/train/{disturbed}"
    config = parse(json.loads(hosts.store.read(f"{run}/config.json"))["config"])
    expected = json.loads(train_alone(config, local_workspace, tmp_path).finished_result.to_json())
    measured = json.loads(hosts.store.read(f"{run}/result.json"))
    for part in ("losses", "metrics", "choices", "reported"):
        assert measured[part] == expected[part], part


def test_sweep_whose_driver_is_killed_ends_on_another_machine(hosts, workspace, at, server):
    sweep = hosts.spawn(hosts.first, "sweep_sfm.py", *at, *SWEEP, "--json")
    hosts.wait(sweep, lambda: finished(hosts, workspace))
    kill(sweep)
    kept = finished(hosts, workspace)
    third = hosts.boot("third")
    hosts.start_node(third, cpus=0)
    result = hosts.result(third, "sweep_sfm.py", *at, *SWEEP, "--resume")
    assert result["resumed"]
    assert_complete(hosts, workspace, server, result)
    assert {run: events(hosts, workspace, run) for run in kept} == kept
    given = ["--study", result["study"], "--workspace", workspace, "--tracking-uri", server]
    assert not hosts.result(third, "report.py", *given)["missing"]
