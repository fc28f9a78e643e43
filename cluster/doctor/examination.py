"""The examination of a cluster: all checks, and what they found."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.doctor import node_examiner
from cluster.doctor.exposure import check_exposure, find_open_services
from cluster.doctor.node_facts import NodeFacts, check_node, compare_nodes
from cluster.doctor.services import check_catalog, check_mlflow
from data_catalog.checks.findings import CheckReport, Findings
from data_catalog.errors import CatalogError, name_first
from data_catalog.ray_failures import describe_failure
from data_catalog.ray_session import ensure_ray, ray_address
from data_catalog.records import Record
from data_catalog.storage.node_probe import check_nodes, reach, working_nodes
from experiments.experiment_config import ExperimentConfig
from experiments.run.run_options import RunOptions

NODE_SECONDS = 90.0
"""How long a node may take to start a process and to import PyTorch."""
ALL_REDUCE_BYTES = 64 * 2**20
SLOW_BYTES_PER_SECOND = 125e6
"""Rate of a network of 1 Gbit/s; the gradients of a published model are 350 MB a step."""
_CLOCK_TRIES = 5

# The nodes may lack the project's code, which is one of the things to find.
cloudpickle.register_pickle_by_value(node_examiner)


class AllReduce(Record):
    """An all-reduce between all nodes."""

    backend: str
    """Backend of the process group: `nccl` with GPUs, otherwise `gloo`."""
    nodes: int
    bytes: int
    """Size of the tensor."""
    seconds: float
    """Seconds of the fastest try on the slowest node."""
    bytes_per_second: float
    """What each node sent and received at least: 2 (n - 1) / n of the tensor in this time."""


class Diagnosis(CheckReport):
    """What was found of a cluster."""

    address: str
    """Where its head is; `local` for a Ray that was started on this machine for the examination."""
    nodes: tuple[NodeFacts, ...]
    all_reduce: AllReduce | None
    not_checked: dict[str, str]
    """Check to why it was left out."""


@dataclass(frozen=True)
class Request:
    """What to examine.

    Attributes:
        options: Workspace, catalog, storage and MLflow of the run.
        config: The run; None for none.
        with_catalog: Whether to verify the catalog's tables.
    """

    options: RunOptions
    config: ExperimentConfig | None = None
    with_catalog: bool = False


def examine(request: Request, on_step: Callable[[str], None] = lambda step: None) -> Diagnosis:
    """Examine the cluster that RAY_ADDRESS names; without one, Ray on this machine.

    Args:
        request: What to examine.
        on_step: Called with what is looked at next.

    Raises:
        CatalogError: The cluster cannot be joined.
    """
    findings, left_out = Findings(), dict[str, str]()
    on_step("joining the cluster")
    ensure_ray()
    names = working_nodes()
    on_step(f"looking at {len(names)} nodes")
    examiners = start_examiners(names, findings)
    addresses = _addresses()
    ports = [int(address.rpartition(":")[2]) for address in addresses if address]
    facts = ask_nodes(names, examiners, ports, findings)
    compare_nodes(list(facts.values()), findings)
    for one in facts.values():
        check_node(one, findings)
    check_exposure(
        find_open_services(*addresses),
        {port: ips for node in facts.values() for port, ips in node.listeners.items()},
        ray_address() == "local",
        findings,
    )
    on_step("writing to workspace and storage from every node")
    _check_places(request, findings)
    on_step("asking MLflow")
    check_mlflow(
        request.options.tracking_uri,
        {names[node]: partial(_why_unreachable, examiner) for node, examiner in examiners.items()},
        findings,
    )
    if request.config is None and not request.with_catalog:
        left_out["catalog"] = "neither --catalog nor --recipe was given"
    else:
        on_step("reading the catalog")
        check_catalog(request.config, request.options, findings)
    for examiner in examiners.values():
        ray.kill(examiner)
    all_reduce = None
    if len(facts) < 2:
        left_out["all_reduce"] = "the cluster has one node"
    else:
        on_step(f"summing {ALL_REDUCE_BYTES / 2**20:.0f} MiB over {len(facts)} nodes")
        all_reduce = measure_all_reduce(facts, findings)
    return Diagnosis(
        address=ray_address(),
        nodes=tuple(facts.values()),
        all_reduce=all_reduce,
        errors=tuple(findings.errors),
        warnings=tuple(findings.warnings),
        not_checked=left_out,
    )


def start_examiners(names: Mapping[str, str], findings: Findings) -> dict[str, Any]:
    """An examiner on each node that answers in time, by the node's id, in the order of `names`.

    Args:
        names: Names of the nodes, by their ids.
        findings: Gets those that do not.
    """
    started = {node: on_node(node).remote() for node in names}
    answers = {node: examiner.clock.remote() for node, examiner in started.items()}
    _, waiting = ray.wait(list(answers.values()), num_returns=len(answers), timeout=NODE_SECONDS)
    silent = [names[node] for node, answer in answers.items() if answer in waiting]
    if silent:
        findings.error(
            "silent",
            f"nodes that started no process within {NODE_SECONDS:.0f} s: {name_first(silent)}; see `ray "
            "status`, and the logs of Ray there",
        )
    found = {}
    for node, answer in answers.items():
        if answer in waiting:
            continue
        try:
            ray.get(answer)
            found[node] = started[node]
        except ray.exceptions.RayError as error:
            findings.error("silent", f"node {names[node]} runs nothing: {describe_failure(error)}")
    return found


def on_node(node: str, num_gpus: int = 0) -> Any:
    """What starts an examiner on a node, with so many of its GPUs."""
    return ray.remote(num_cpus=0, num_gpus=num_gpus)(node_examiner.NodeExaminer).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )


def _why_unreachable(examiner: Any, url: str) -> str | None:
    try:
        return ray.get(examiner.unreachable.remote(url))
    except ray.exceptions.RayError as error:
        return describe_failure(error)


def _addresses() -> tuple[str, str | None]:
    """Host and port of the head, and of its dashboard; None where it has none."""
    session: Any = ray._private.worker._global_node
    return ray.get_runtime_context().gcs_address, session.webui_url or None


def ask_nodes(
    names: Mapping[str, str], examiners: Mapping[str, Any], ports: Sequence[int], findings: Findings
) -> dict[str, NodeFacts]:
    """What is on the nodes.

    Args:
        names: Names of the nodes, by id.
        examiners: Examiners of those that run one.
        ports: As in `NodeExaminer.facts`.
        findings: Gets the nodes that cannot be examined, which are left out.
    """
    found = {}
    for node, examiner in examiners.items():
        try:
            found[node] = _ask_facts(node, names[node], examiner, ports)
        except ray.exceptions.RayError as error:
            findings.error("silent", f"node {names[node]} cannot be examined: {describe_failure(error)}")
    return found


def _ask_facts(node: str, name: str, examiner: Any, ports: Sequence[int]) -> NodeFacts:
    (resources,) = (one["Resources"] for one in ray.nodes() if one["NodeID"] == node)
    session: Any = ray._private.worker._global_node
    facts = ray.get(examiner.facts.remote(session.get_temp_dir_path(), ports))
    return NodeFacts(
        node=name,
        ray_gpus=resources.get("GPU", 0.0),
        clock_ahead_seconds=_clock_ahead(examiner),
        **facts,
    )


def _clock_ahead(examiner: Any) -> float:
    """How far a node's clock is ahead: by its answer that took the shortest time, as NTP asks."""
    answers = []
    for _ in range(_CLOCK_TRIES):
        asked = time.time()
        answer = ray.get(examiner.clock.remote())
        answered = time.time()
        answers.append((answered - asked, answer - (asked + answered) / 2))
    return min(answers)[1]


def _check_places(request: Request, findings: Findings) -> None:
    folders = request.options.needed_folders(trials=True)
    try:
        reach(folders)
        check_nodes(folders)
    except CatalogError as error:
        findings.error("places", str(error))


def measure_all_reduce(facts: Mapping[str, NodeFacts], findings: Findings) -> AllReduce | None:
    """Sum a tensor over all nodes, by the process group that a run on them would have.

    Args:
        facts: Facts of each node, by its id.
        findings: Gets what is wrong: nodes that do not reach each other, or a slow network.
    """
    nodes = [facts[node].node for node in facts]
    # A run takes GPUs where the cluster has some.
    gpus = 1 if all(node.ray_gpus >= 1 for node in facts.values()) else 0
    members = [on_node(node, num_gpus=gpus).remote() for node in facts]
    try:
        url = ray.get(members[0].meeting_point.remote(), timeout=NODE_SECONDS)
        seconds = max(
            ray.get(
                [
                    member.all_reduce.remote(url, rank, len(members), ALL_REDUCE_BYTES, NODE_SECONDS / 2)
                    for rank, member in enumerate(members)
                ],
                timeout=NODE_SECONDS,
            )
        )
    except ray.exceptions.RayError as error:
        reason = (
            f"no answer within {NODE_SECONDS:.0f} s"
            if isinstance(error, ray.exceptions.GetTimeoutError)
            else describe_failure(error)
        )
        findings.error(
            "all_reduce",
            f"nodes {name_first(nodes)} did not sum a tensor ({reason}); open the network between them for "
            "all ports, free their GPUs, and where they have several networks name one in GLOO_SOCKET_IFNAME "
            "and NCCL_SOCKET_IFNAME before `ray start`",
        )
        return None
    finally:
        for member in members:
            ray.kill(member)
    found = AllReduce(
        backend="nccl" if gpus else "gloo",
        nodes=len(members),
        bytes=ALL_REDUCE_BYTES,
        seconds=seconds,
        bytes_per_second=2 * (len(members) - 1) / len(members) * ALL_REDUCE_BYTES / seconds,
    )
    if found.bytes_per_second < SLOW_BYTES_PER_SECOND:
        findings.warn(
            "all_reduce",
            f"nodes {name_first(nodes)} exchange {found.bytes_per_second / 1e6:.0f} MB/s, and each step of a "
            "published model exchanges 350 MB; use a faster network, or fewer nodes with more GPUs each",
        )
    return found
