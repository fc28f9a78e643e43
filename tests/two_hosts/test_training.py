"""Training and evaluation over two hosts whose disks are apart."""

import json
from pathlib import Path

import mlflow
import pytest

from experiments import evaluate
from experiments.evaluating.evaluation_target import load_run
from tests.tolerances import ROUNDING_FLOAT32


@pytest.fixture(scope="module")
def trained(cluster, options):
    """What `train.py` prints on the first host, with a worker on each one, and the actors that it started."""
    cluster.recover()
    before = cluster.actors()
    storage = ["--storage", cluster.store.uri("checkpoints")]
    result = cluster.result(cluster.first, "train.py", *options, *storage, "--workers", "2")
    return result, {name: started - before[name] for name, started in cluster.actors().items()}


def shards(machine):
    """Names of the shards of which a machine has a copy on its disk."""
    return {Path(file).name for file in machine.files("home/.cache/stmi") if file.endswith(".arrow")}


def test_worker_on_each_host_reads_the_views_through_a_copy_of_its_own(trained, cluster, local):
    _, actors = trained
    assert {name: started["RayTrainWorker"] for name, started in actors.items()} == {"first": 1, "second": 1}
    views = {local.view(split).manifest.shards[0].sha256 for split in ("train", "val", "test")}
    for machine in (cluster.first, cluster.second):
        assert shards(machine) == {f"{sha256}.arrow" for sha256 in views}


def test_training_over_two_hosts_gives_the_numbers_of_one_process(trained, local):
    result, _ = trained
    expected = json.loads(local.finished_result.to_json())
    for part in ("metrics", "choices", "reported", "untrained"):
        assert result[part] == expected[part], part
    # Two workers add up the gradients in another order than one.
    for losses, alone in zip(result["losses"], expected["losses"], strict=True):
        assert losses == pytest.approx(alone, rel=0, abs=ROUNDING_FLOAT32)


def test_checkpoints_are_in_the_object_store_and_on_no_disk(trained, cluster):
    result, _ = trained
    kept = [
        name
        for name in cluster.store.names(f"checkpoints/{result['run']}")
        if name.endswith("model.safetensors")
    ]
    assert 1 <= len(kept) <= 2
    assert result["checkpoint"].startswith(cluster.store.uri(f"checkpoints/{result['run']}"))
    for machine in (cluster.first, cluster.second):
        assert not [file for file in machine.files() if file.endswith((".safetensors", ".pt"))]


def test_no_secret_is_in_a_file_a_log_an_object_or_a_command_line(trained, cluster):
    assert cluster.leaks() == []
    cluster.second.path("planted").write_text(f"token: {cluster.environment['RAY_AUTH_TOKEN']}")
    assert [Path(leak).name for leak in cluster.leaks()] == ["planted"]


def test_evaluation_over_two_hosts_gives_the_metrics_of_one_process(trained, cluster, local):
    result, _ = trained
    for machine in (cluster.first, cluster.second):
        machine.remove("home/.cache")
    before = cluster.actors()
    evaluated = cluster.result(
        cluster.first, "evaluate.py", "--run", result["folder"], "--workers", "2", "--missing", "all"
    )
    started = {name: actors - before[name] for name, actors in cluster.actors().items()}
    assert all(actors["MapWorker"] for actors in started.values())
    test_view = f"{local.view('test').manifest.shards[0].sha256}.arrow"
    for machine in (cluster.first, cluster.second):
        assert shards(machine) == {test_view}
    missing = [(), *evaluate.PROPER_SUBSETS]
    expected = evaluate.evaluate(load_run(local.path), missing, workers=0)
    assert evaluated["settings"] == json.loads(expected.to_json())["settings"]


def test_training_whose_storage_stays_away_ends_and_goes_on_with_the_same_command(
    hosts, options, server, trained, local
):
    run = f"outage/train/{trained[0]['run']}"
    given = [*options, "--workspace", hosts.store.uri("outage"), "--workers", "2", "--tracking-uri", server]
    before = hosts.actors()

    def start():
        return hosts.spawn(hosts.first, "train.py", *given, "--storage-patience", "8", "--json")

    def checkpoints():
        return [event["checkpoint"] for event in hosts.store.events(run) if event.get("checkpoint")]

    def status():
        (stored,) = mlflow.MlflowClient(server).search_runs(
            [mlflow.MlflowClient(server).get_experiment_by_name("rgbnt201-paper").experiment_id],
            f"tags.`stmi.run` = '{trained[0]['run']}'",
        )
        return stored.info.status

    first = start()
    hosts.wait(first, checkpoints)
    with hosts.store.unavailable():
        out, errors = first.communicate(timeout=100)
    assert (first.returncode, out) == (1, ""), errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "has not answered for" in line
    assert "Traceback" not in errors
    assert hosts.store.environment["AWS_SECRET_ACCESS_KEY"] not in errors
    assert status() == "FAILED"
    kept = hosts.store.events(run)
    second = start()
    hosts.wait(second, lambda: len(checkpoints()) > len([event for event in kept if event.get("checkpoint")]))
    assert status() == "RUNNING"
    # It comes back before the run gives up.
    hosts.store.go_away(5)
    out, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    events = hosts.store.events(run)
    assert events[: len(kept)] == kept
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    last = [event for event in kept if event.get("checkpoint")][-1]
    assert resumed["epoch"] == last["epoch"]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3]
    result = json.loads(out)
    for part in ("losses", "metrics", "choices", "reported", "untrained"):
        assert result[part] == trained[0][part], part
    assert status() == "FINISHED"
    assert all((new - before[name])["RayTrainWorker"] == 2 for name, new in hosts.actors().items())
