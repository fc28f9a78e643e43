"""What the doctor finds on nodes: each fault is planted in a node that is otherwise well."""

import sys

import pytest

from cluster.doctor.node_examiner import NodeExaminer
from cluster.doctor.node_facts import Gpu, NodeFacts, check_node, compare_nodes
from data_catalog.checks.findings import Findings

IDLE_GPU = Gpu(name="H200", total_mebibytes=143771, used_mebibytes=0, processes=())
WELL = NodeFacts(
    node="alpha (10.0.0.1)",
    versions={"python": "3.11.7", "ray": "2.60.0", "torch": "2.9.0"},
    code="0123456789ab",
    gpus=(IDLE_GPU,),
    torch_sees=1,
    ray_gpus=1,
    disk_free_bytes=100 * 2**30,
    shared_memory_free_bytes=8 * 2**30,
    open_files=65536,
    processes=None,
    proxied_loopback=(),
    clock_ahead_seconds=0.01,
    listeners={},
)


def with_fault(**fields) -> NodeFacts:
    return WELL.model_copy(update={"node": "beta (10.0.0.2)"} | fields)


def found(*nodes: NodeFacts) -> list[tuple[str, str, str]]:
    findings = Findings()
    compare_nodes(nodes, findings)
    for node in nodes:
        check_node(node, findings)
    return [
        (kind, finding.check, finding.message)
        for kind, some in (("error", findings.errors), ("warning", findings.warnings))
        for finding in some
    ]


def test_nodes_that_are_well_and_alike_have_no_findings():
    assert found(WELL, with_fault()) == []


@pytest.mark.parametrize(
    ("fault", "kind", "check", "words"),
    [
        ({"versions": WELL.versions | {"ray": "2.61.0"}}, "error", "versions", "ray is 2.61.0, elsewhere"),
        ({"versions": WELL.versions | {"torch": None}}, "error", "versions", "torch is missing, elsewhere"),
        ({"versions": {"python": "3.11.7", "ray": "2.60.0"}}, "error", "versions", "torch is missing"),
        ({"code": None}, "error", "code", "cannot be imported; submit it with"),
        ({"code": "ba9876543210"}, "error", "code", "is ba9876543210, elsewhere 0123456789ab"),
        ({"gpus": (IDLE_GPU, IDLE_GPU)}, "error", "gpus", "2 GPUs by the driver, 1 by PyTorch, 1 by Ray"),
        (
            {"gpus": (), "gpu_fault": "couldn't communicate with the driver"},
            "error",
            "gpus",
            "does not say which GPUs it has (couldn't communicate with the driver); run nvidia-smi",
        ),
        (
            {"gpus": (Gpu(name="GB10", total_mebibytes=None, used_mebibytes=None, processes=(7,)),)},
            "warning",
            "gpus",
            "GPU 0 (GB10) is used by process 7; end it",
        ),
        ({"torch_sees": 0}, "error", "gpus", "1 GPUs by the driver, 0 by PyTorch"),
        ({"ray_gpus": 0}, "error", "gpus", "0 by Ray; install the PyTorch for its CUDA"),
        (
            {"gpus": (IDLE_GPU.model_copy(update={"processes": (77,), "used_mebibytes": 900}),)},
            "warning",
            "gpus",
            "GPU 0 (H200) is used by process 77, with 900 of 143771 MiB",
        ),
        ({"disk_free_bytes": 3 * 2**30}, "warning", "disk", "3.0 of 10 GiB are free of Ray's"),
        ({"shared_memory_free_bytes": 2**26}, "warning", "shared_memory", "0.1 of 2 GiB are free in"),
        ({"open_files": 1024}, "warning", "open_files", "at most 1024 open files"),
        ({"processes": 100}, "warning", "processes", "set `ulimit -u 4096` before `ray start`"),
        ({"proxied_loopback": ("http://p:3128",)}, "error", "proxy", "would go to the proxy http://p:3128"),
        ({"clock_ahead_seconds": 31.2}, "error", "clock", "31 s ahead of this one's"),
        ({"clock_ahead_seconds": -8.0}, "error", "clock", "8 s behind this one's"),
    ],
)  # fmt: skip
def test_fault_of_one_node_is_found_with_its_name_and_a_remedy(fault, kind, check, words):
    ((given_kind, given_check, message),) = found(WELL, WELL, with_fault(**fault))
    assert (given_kind, given_check) == (kind, check)
    assert message.startswith("node beta (10.0.0.2): ")
    assert words in message


def test_node_without_a_limit_or_shared_memory_has_no_finding():
    assert found(with_fault(shared_memory_free_bytes=None, open_files=None)) == []


DRIVER = """#!/bin/sh
case "$1" in
    --query-gpu=*) echo "GPU-a, H200, 143771, 512"; echo "GPU-b, H200, 143771, 0";;
    *) echo "GPU-a, 4242"; echo "GPU-a, 4243";;
esac
"""


def facts_with_driver(program, tmp_path, monkeypatch) -> NodeFacts:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(program)
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    facts = NodeExaminer().facts(str(tmp_path), [])
    return NodeFacts(node="here", ray_gpus=0, clock_ahead_seconds=0, **facts)


def test_facts_of_a_node_are_those_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    facts = facts_with_driver(DRIVER, tmp_path, monkeypatch)
    assert facts.gpu_fault is None
    assert facts.gpus == (
        Gpu(name="H200", total_mebibytes=143771, used_mebibytes=512, processes=(4242, 4243)),
        IDLE_GPU,
    )
    assert facts.proxied_loopback == ("http://proxy.example:3128",)
    assert facts.versions["torch"] is not None
    assert facts.code is not None
    assert facts.disk_free_bytes > 0


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (
            "#!/bin/sh\necho 'has failed because it couldn'\"'\"'t communicate'; exit 9\n",
            "couldn't communicate",
        ),
        ("#!/bin/sh\necho one field\n", "ValueError"),
        ("no program", "OSError"),
    ],
)
def test_driver_that_does_not_answer_is_a_fact_of_the_node(program, fault, tmp_path, monkeypatch):
    facts = facts_with_driver(program, tmp_path, monkeypatch)
    assert facts.gpus == ()
    assert fault in facts.gpu_fault


def test_memory_that_the_driver_does_not_tell_is_not_known(tmp_path, monkeypatch):
    program = DRIVER.replace("143771, 512", "[N/A], [N/A]")
    gpu = facts_with_driver(program, tmp_path, monkeypatch).gpus[0]
    assert (gpu.total_mebibytes, gpu.used_mebibytes) == (None, None)


def test_node_without_pytorch_is_described(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert facts_with_driver(DRIVER, tmp_path, monkeypatch).torch_sees == 0


def test_no_node_that_can_be_examined_is_no_finding_of_its_own():
    assert found() == []
