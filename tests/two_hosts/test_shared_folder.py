"""A workspace on a disk that both hosts mount, as on a cluster with NFS; everything else is apart."""

import json
import shutil

import pytest

from data_catalog.synthetic.synthetic_settings import SyntheticSettings
from data_catalog.synthetic.writing import synthesize
from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE

TRIALS = 4


@pytest.fixture
def shared(hosts, tmp_path):
    """A folder that both hosts have at the same path, with its path as the tests see it."""
    for machine in (hosts.first, hosts.second):
        machine.mount(tmp_path, "shared")
    yield hosts.disk / "shared", tmp_path
    for machine in (hosts.first, hosts.second):
        machine.unmount("shared")


def test_images_in_a_folder_of_both_hosts_are_read_by_both(shared, hosts):
    folder, seen = shared
    settings = SyntheticSettings(height=32, width=16, train_identities=6, test_identities=4, cameras=2)
    synthesize(settings, seen)
    before = hosts.actors()
    command = ["-m", "data_catalog", "ingest", "--source", str(folder / "RGBNT201")]
    options = ["--catalog", str(folder / "catalog"), "--samples-per-shard", "4", "--json"]
    first = hosts.first.start(
        "python", *command, *options, environment=hosts.environment | {LOCAL_SECONDS_VARIABLE: "0"}
    )
    printed, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    assert json.loads(printed)["quarantined"] == []
    assert all((actors - before[name])["MapWorker"] for name, actors in hosts.actors().items())


def test_sweep_in_a_folder_of_both_hosts_has_every_trial(shared, hosts, options):
    workspace, seen = shared
    before = hosts.actors()
    given = ["--workspace", str(workspace), "--trials", str(TRIALS), "--no-early-stopping"]
    result = hosts.result(hosts.first, "sweep_sfm.py", *options, *given)
    assert all((actors - before[name])["ImplicitFunc"] for name, actors in hosts.actors().items())
    assert result["missing"] == 0
    assert [trial["state"] for trial in result["trials"]] == ["finished"] * TRIALS
    for trial in result["trials"]:
        lines = (seen / "train" / trial["run"] / "journal.jsonl").read_text().splitlines()
        epochs = [event for event in map(json.loads, lines) if event["event"] == "epoch"]
        assert [event["epoch"] for event in epochs] == [1, 2, 3]
        assert trial["value"] == epochs[-1]["validation"]["U"]["mAP"]
    for machine in (hosts.first, hosts.second):
        assert not [file for file in machine.files() if file.startswith("runs/")]


def test_workspace_at_another_path_on_a_node_is_refused_by_name_and_works_where_all_work_is_there(
    hosts, options, local, local_workspace, tmp_path
):
    mounts = {"here": hosts.first, "there": hosts.second}
    shutil.copytree(local_workspace, tmp_path, dirs_exist_ok=True)
    for where, machine in mounts.items():
        machine.mount(tmp_path, where)
    try:
        here, there = (str(hosts.disk / where) for where in mounts)
        refused = hosts.run(hosts.first, "train.py", *options, "--workspace", here, "--workers", "2")
        assert refused.returncode == 2
        line = refused.stderr.splitlines()[-1]
        assert f"workspace {here} is not shared by the nodes of the Ray cluster: second (127.0.0.3)" in line
        assert "under the same name" in line
        # The run was trained at yet another path.
        given = [*options[: options.index("--catalog")], "--workspace", there]
        found = hosts.result(hosts.second, "train.py", *given, RAY_ADDRESS="local")
        assert (found["reused"], found["folder"]) == (True, f"{there}/train/{local.name}")
        assert found["metrics"] == json.loads(local.finished_result.to_json())["metrics"]
    finally:
        for where, machine in mounts.items():
            machine.unmount(where)
