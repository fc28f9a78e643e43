"""A node that falls silent without an end of its connections, as when its power or network fails."""

import json

import pytest

from experiments.tracking.journal import current_epochs
from tests import host_network
from tests.host_network import HostNetwork
from tests.two_hosts.conftest import upload_catalog
from tests.two_hosts.machine import missing_requirement
from tests.two_hosts.ray_hosts import NETWORK_ADDRESSES, RayHosts

QUICK_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""Ray takes a node for lost after some ten seconds, instead of a minute."""

EPOCHS = 30
"""Of a trial, which so lasts longer than it takes to see who trains it."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster on a network of its own."""
    if reason := missing_requirement() or host_network.missing_requirement():
        pytest.skip(f"hosts with networks of their own need root on Linux, and iproute2: {reason}")
    network = HostNetwork(NETWORK_ADDRESSES)
    hosts = None
    try:
        network.start()
        hosts = RayHosts(tmp_path_factory.mktemp("hosts"), QUICK_CHECKS, network)
        hosts.start()
        yield hosts
    finally:
        if hosts is not None:
            hosts.close()
        network.end()


@pytest.fixture
def hosts(cluster):
    """As in `conftest.py`."""
    cluster.recover()
    return cluster


@pytest.fixture(scope="module")
def options(cluster, clip, local_workspace):
    """As in `conftest.py`."""
    return upload_catalog(cluster, clip, local_workspace)


def contents(hosts, folder):
    """The bytes of each object below a folder."""
    return {name: hosts.store.read(f"{folder}/{name}") for name in hosts.store.names(folder)}


def test_run_whose_node_loses_its_network_goes_on_on_another_one(hosts, options, local):
    before = hosts.actors()
    given = ["--workspace", hosts.store.uri("run"), "--workers", "2", "--json"]
    process = hosts.spawn(hosts.first, "train.py", *options, *given)
    hosts.wait(
        process,
        lambda: any(event.get("checkpoint") for run in hosts.store.journals("run").values() for event in run),
    )
    assert all((actors - before[name])["RayTrainWorker"] == 1 for name, actors in hosts.actors().items())
    hosts.network.disconnect("second")
    hosts.start_node(hosts.boot("third"))
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result, expected = json.loads(out), json.loads(local.finished_result.to_json())
    for part in ("metrics", "choices", "reported", "untrained"):
        assert result[part] == expected[part], part
    assert "lost on node 10.78.0.2" in errors
    # The lost node comes back, and writes nothing over what is there now.
    stored = contents(hosts, "run")
    hosts.network.connect("second")
    hosts.wait_for_end(hosts.second)
    assert contents(hosts, "run") == stored


def test_trial_of_a_frozen_node_goes_on_elsewhere_and_the_node_writes_nothing_once_it_wakes(hosts, options):
    before = hosts.actors()
    many = ["--set", f"train.epochs={EPOCHS}", "--set", f"train.validate_every={EPOCHS}"]
    given = ["--workspace", hosts.store.uri("sweep"), "--trials", "3", "--no-early-stopping", "--json"]
    sweep = hosts.spawn(hosts.first, "sweep_sfm.py", *options, *many, *given)

    def starts(run):
        """On which host each start of a run was."""
        return [event["environment"]["host"] for event in run if event["event"] == "started"]

    def find_trained_there():
        """A run of which the second host has trained some epochs, and has many left."""
        for name, run in hosts.store.journals("sweep").items():
            if starts(run) == ["second"] and 3 <= len(current_epochs(run)) <= EPOCHS / 2:
                return name
        return None

    def has_gone_on():
        """Whether the other host has taken the run over, and has trained on from a checkpoint."""
        run = hosts.store.events(f"sweep/train/{frozen}")
        return starts(run) == ["second", "first"] and run[-1]["event"] == "checkpoint"

    frozen = hosts.wait(sweep, find_trained_there)
    with hosts.second.frozen():
        kept = hosts.store.events(f"sweep/train/{frozen}")
        assert len(current_epochs(kept)) < EPOCHS
        hosts.wait(sweep, has_gone_on)
    out, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    hosts.wait_for_end(hosts.second)
    assert all((actors - before[name])["ImplicitFunc"] for name, actors in hosts.actors().items())
    result = json.loads(out)
    assert result["missing"] == 0
    assert [trial["state"] for trial in result["trials"]] == ["finished"] * 3
    runs = hosts.store.journals("sweep")
    assert runs.keys() == {trial["run"] for trial in result["trials"]}
    assert runs[frozen][: len(kept)] == kept
    for name, run in runs.items():
        assert starts(run) == (["second", "first"] if name == frozen else starts(run)[:1]), name
        assert [event["epoch"] for event in current_epochs(run)] == list(range(1, EPOCHS + 1))
        assert [event["event"] for event in run].count("finished") == 1
    # Since then, only one process has written into the run.
    (resumed,) = [number for number, event in enumerate(runs[frozen]) if event["event"] == "resumed"]
    epochs = [event["epoch"] for event in runs[frozen][resumed:] if event["event"] == "epoch"]
    assert epochs == list(range(runs[frozen][resumed]["epoch"] + 1, EPOCHS + 1))
