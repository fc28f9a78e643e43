"""What the doctor finds between nodes: nodes that run nothing, that do not reach each other, or slowly."""

import time

import pytest
import ray

from cluster.doctor import examination
from cluster.doctor.examination import ask_nodes, measure_all_reduce
from cluster.doctor.node_examiner import NodeExaminer
from data_catalog.checks.findings import Findings
from tests.cluster.doctor.test_node_facts import WELL

NAMES = {"a": "alpha (10.0.0.1)", "b": "beta (10.0.0.2)"}
FACTS = {
    node: WELL.model_copy(update={"node": name, "gpus": (), "torch_sees": 0, "ray_gpus": 0.0})
    for node, name in NAMES.items()
}


@pytest.fixture
def nodes(ray_session, monkeypatch):
    """Two nodes, both of them this machine; gets what runs on each."""

    def run(**examiners: type) -> None:
        monkeypatch.setattr(
            examination, "on_node", lambda node, num_gpus=0: ray.remote(num_cpus=0)(examiners[node])
        )

    return run


class Slow(NodeExaminer):
    """Behind a network of 100 Mbit/s."""

    def all_reduce(self, url: str, rank: int, count: int, size: int, seconds: float) -> float:
        super().all_reduce(url, rank, count, size, seconds)
        return size / 12.5e6


class Apart(NodeExaminer):
    """Reaches none of the others' ports."""

    def all_reduce(self, url: str, rank: int, count: int, size: int, seconds: float) -> float:
        return super().all_reduce("tcp://127.0.0.1:9", rank, count, size, 3.0)


class Waiting(NodeExaminer):
    """Does not come to answer."""

    def __init__(self) -> None:
        time.sleep(600)


class Unknown(NodeExaminer):
    """Is not as the doctor expects a node to be."""

    def facts(self, temporary_folder, ports):
        raise FileNotFoundError(f"no folder {temporary_folder}")


class Broken(NodeExaminer):
    """Cannot run anything."""

    def __init__(self) -> None:
        raise OSError("no space left on device")


def test_all_reduce_sums_over_nodes_and_a_fast_network_has_no_finding(nodes, monkeypatch):
    nodes(a=NodeExaminer, b=NodeExaminer)
    monkeypatch.setattr(examination, "SLOW_BYTES_PER_SECOND", 1.0)
    findings = Findings()
    found = measure_all_reduce(FACTS, findings)
    assert (found.backend, found.nodes, findings.errors, findings.warnings) == ("gloo", 2, [], [])
    assert found.bytes_per_second == pytest.approx(found.bytes / found.seconds)


def test_a_slow_network_is_named_with_its_bandwidth(nodes):
    nodes(a=NodeExaminer, b=Slow)
    findings = Findings()
    measure_all_reduce(FACTS, findings)
    ((check, message),) = [(finding.check, finding.message) for finding in findings.warnings]
    assert check == "all_reduce"
    assert message.startswith("nodes alpha (10.0.0.1), beta (10.0.0.2) exchange 12 MB/s, and each step of a")


@pytest.mark.slow
def test_nodes_that_do_not_reach_each_other_are_named_with_what_to_open(nodes, monkeypatch):
    monkeypatch.setattr(examination, "NODE_SECONDS", 60.0)
    nodes(a=NodeExaminer, b=Apart)
    findings = Findings()
    assert measure_all_reduce(FACTS, findings) is None
    ((check, message),) = [(finding.check, finding.message) for finding in findings.errors]
    assert check == "all_reduce"
    assert message.startswith("nodes alpha (10.0.0.1), beta (10.0.0.2) did not sum a tensor (")
    assert "open the network between them for all ports" in message
    assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("examiner", "words"),
    [
        (Waiting, "nodes that started no process within 30 s: beta (10.0.0.2); see `ray status`"),
        (Broken, "node beta (10.0.0.2) runs nothing: "),
    ],
)
def test_a_node_that_runs_nothing_is_named_and_the_others_are_examined(nodes, monkeypatch, examiner, words):
    # Enough for the node that answers, on a busy machine.
    monkeypatch.setattr(examination, "NODE_SECONDS", 30.0)
    nodes(a=NodeExaminer, b=examiner)
    findings = Findings()
    assert list(examination.start_examiners(NAMES, findings)) == ["a"]
    ((check, message),) = [(finding.check, finding.message) for finding in findings.errors]
    assert (check, words in message, "\n" in message) == ("silent", True, False), message


def test_node_that_cannot_be_examined_is_named_and_the_others_are_examined(ray_session):
    node = ray.get_runtime_context().get_node_id()
    findings = Findings()
    examiners = {node: ray.remote(num_cpus=0)(NodeExaminer).remote()}
    facts = ask_nodes({node: "alpha"}, examiners, [], findings)
    assert (facts[node].node, findings.errors) == ("alpha", [])
    assert ask_nodes({node: "beta"}, {node: ray.remote(num_cpus=0)(Unknown).remote()}, [], findings) == {}
    (finding,) = findings.errors
    assert finding.message.startswith("node beta cannot be examined: ")
    assert "no folder" in finding.message
