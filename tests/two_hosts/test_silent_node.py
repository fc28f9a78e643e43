"""A node that falls silent without an end of its connections, as when its power or network fails."""

import json

import pytest

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


def journals(hosts, folder):
    """The events of each run in a workspace."""
    names = [name for name in hosts.store.names(f"{folder}/train") if name.endswith("/journal.jsonl")]
    texts = {name.partition("/")[0]: hosts.store.read(f"{folder}/train/{name}") for name in names}
    return {run: [json.loads(line) for line in text.splitlines()] for run, text in texts.items()}


def contents(hosts, folder):
    """The bytes of each object below a folder."""
    return {name: hosts.store.read(f"{folder}/{name}") for name in hosts.store.names(folder)}


def test_run_whose_node_loses_its_network_goes_on_on_another_one(hosts, options, local):
    before = hosts.actors()
    given = ["--workspace", hosts.store.uri("run"), "--workers", "2", "--json"]
    process = hosts.spawn(hosts.first, "train.py", *options, *given)
    hosts.wait(
        process,
        lambda: any(event.get("checkpoint") for run in journals(hosts, "run").values() for event in run),
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
