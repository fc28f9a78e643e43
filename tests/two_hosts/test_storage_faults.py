"""Storage that the nodes do not share, and storage that goes away in a run."""

import json
import time

import pytest


def error_line(text):
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("script", "given"), [("train.py", ("--workers", "2")), ("sweep_sfm.py", ("--trials", "2"))]
)
def test_workspace_that_only_one_node_sees_is_refused_before_a_run_begins(hosts, options, script, given):
    ended = hosts.run(hosts.first, script, *options, *given)
    assert ended.returncode == 2
    line = error_line(ended.stderr)
    assert f"workspace {hosts.disk / 'runs'} is not shared by the nodes of the Ray cluster: second" in line
    assert "--workspace" in line
    assert "s3://bucket/runs" in line
    files = [*hosts.first.files("runs"), *hosts.second.files("runs")]
    assert not [file for file in files if file.endswith(("journal.jsonl", "mlflow.db")) or ".probe" in file]


@pytest.fixture
def training(hosts, options, request):
    """Begins a training with a worker on each node, all in the object store, and waits for a checkpoint."""
    folder = f"workspaces/{request.node.name}"
    given = [*options, "--workspace", hosts.store.uri(folder), "--workers", "2", "--json"]

    def begin(*more):
        process = hosts.spawn(hosts.first, "train.py", *given, *more)
        hosts.wait(process, lambda: any(name.endswith("training.pt") for name in hosts.store.names(folder)))
        return process

    return begin


def assert_as_if_undisturbed(out, local):
    result, expected = json.loads(out), json.loads(local.finished_result.to_json())
    for part in ("metrics", "choices", "reported", "untrained"):
        assert result[part] == expected[part], part


def test_training_waits_for_storage_that_goes_away_for_20_seconds(hosts, training, local):
    before = hosts.actors()
    process = training()
    with hosts.store.unavailable():
        time.sleep(20)
        assert process.poll() is None
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert_as_if_undisturbed(out, local)
    assert all((new - before[name])["RayTrainWorker"] == 1 for name, new in hosts.actors().items())


def test_training_whose_storage_stays_away_stops_and_continues_with_the_same_command(hosts, training, local):
    process = training("--storage-patience", "5")
    with hosts.store.unavailable():
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 1, errors
    assert "has not answered for" in error_line(errors)
    assert "Traceback" not in errors
    out, errors = training("--storage-patience", "5").communicate(timeout=200)
    assert_as_if_undisturbed(out, local)
