"""What the doctor knows of a node, and what of it is wrong."""

from collections import Counter
from collections.abc import Iterable, Sequence

from cluster.doctor.node_examiner import LOOPBACK
from data_catalog.checks.findings import Findings
from data_catalog.errors import name_first
from data_catalog.records import Record

CLOCK_SECONDS = 2.0
DISK_BYTES = 10 * 2**30
SHARED_MEMORY_BYTES = 2 * 2**30
OPEN_FILES = 4096
PROCESSES = 4096


class Gpu(Record):
    """A GPU, as the driver of its node describes it."""

    name: str
    total_mebibytes: int | None
    """None where it has no memory of its own, or the driver does not say."""
    used_mebibytes: int | None
    processes: tuple[int, ...]
    """Numbers of the processes that use it."""


class NodeFacts(Record):
    """A node of the cluster."""

    node: str
    """Host name and address."""
    versions: dict[str, str | None]
    """By package, and of Python; None where it is not installed."""
    code: str | None
    """Digest of the project's code that its processes import; None where it is missing."""
    gpus: tuple[Gpu, ...]
    gpu_fault: str | None = None
    """Why its driver does not say which GPUs it has."""
    torch_sees: int
    """Number of GPUs that PyTorch can use."""
    ray_gpus: float
    """Number of GPUs that Ray gives out."""
    disk_free_bytes: int
    """Free bytes of the disk of Ray's temporary folder."""
    shared_memory_free_bytes: int | None
    """Free bytes of /dev/shm, where Ray keeps its objects; None where the system has none."""
    open_files: int | None
    """How many files a process may have open; None for no limit."""
    processes: int | None
    """How many processes a user may have; None for no limit."""
    proxied_loopback: tuple[str, ...]
    """Proxies to which requests to the node itself would go."""
    clock_ahead_seconds: float
    """How far its clock is ahead of this machine's."""
    listeners: dict[int, tuple[str, ...]]
    """Port of a service of the cluster to the addresses at which this node listens to it."""


def compare_nodes(nodes: Sequence[NodeFacts], findings: Findings) -> None:
    """Find nodes that differ from the others, in versions and code.

    Args:
        nodes: All of them.
        findings: Gets what is wrong.
    """
    for name in sorted({name for node in nodes for name in node.versions}):
        usual = _usual(node.versions.get(name) for node in nodes)
        for node in nodes:
            if (version := node.versions.get(name)) != usual:
                findings.error(
                    "versions",
                    f"node {node.node}: {name} is {version or 'missing'}, elsewhere {usual or 'missing'}; "
                    "install the versions of cluster/constraints.txt on all nodes",
                )
    usual = _usual(node.code for node in nodes)
    for node in nodes:
        if node.code is None:
            findings.error(
                "code",
                f"node {node.node}: the project's code cannot be imported; submit it with `ray job submit "
                "--working-dir .`, or install it there",
            )
        elif node.code != usual:
            findings.error(
                "code",
                f"node {node.node}: the project's code is {node.code}, elsewhere {usual}; submit it with "
                "`ray job submit --working-dir .`, or install the same there",
            )


def check_node(node: NodeFacts, findings: Findings) -> None:
    """Find what is wrong with a node.

    Args:
        node: The node.
        findings: Gets what is wrong.
    """
    _check_gpus(node, findings)
    if abs(node.clock_ahead_seconds) > CLOCK_SECONDS:
        direction = "ahead of" if node.clock_ahead_seconds > 0 else "behind"
        findings.error(
            "clock",
            f"node {node.node}: its clock is {abs(node.clock_ahead_seconds):.0f} s {direction} this one's, "
            "and requests to object storage are refused then; start a time service (chrony, ntpd) there",
        )
    for what, free, needed, remedy in (
        ("disk", node.disk_free_bytes, DISK_BYTES, "of Ray's temporary folder; make room, or start Ray with "
         "another --temp-dir"),
        ("shared_memory", node.shared_memory_free_bytes, SHARED_MEMORY_BYTES, "in /dev/shm, where Ray keeps "
         "objects; in a container give it more (--shm-size, or a volume of kind Memory)"),
    ):  # fmt: skip
        if free is not None and free < needed:
            findings.warn(
                what, f"node {node.node}: {free / 2**30:.1f} of {needed / 2**30:.0f} GiB are free {remedy}"
            )
    for what, limit, needed, option in (
        ("open_files", node.open_files, OPEN_FILES, "-n"),
        ("processes", node.processes, PROCESSES, "-u"),
    ):
        if limit is not None and limit < needed:
            findings.warn(
                what,
                f"node {node.node}: at most {limit} {what.replace('_', ' ')}, and Ray can need {needed}; "
                f"set `ulimit {option} {needed}` before `ray start`",
            )
    if node.proxied_loopback:
        findings.error(
            "proxy",
            f"node {node.node}: requests to itself would go to the proxy {', '.join(node.proxied_loopback)}; "
            f"set NO_PROXY={LOOPBACK},localhost before `ray start`",
        )


def _check_gpus(node: NodeFacts, findings: Findings) -> None:
    count = len(node.gpus)
    if node.gpu_fault is not None:
        findings.error(
            "gpus",
            f"node {node.node}: its driver does not say which GPUs it has ({node.gpu_fault}); run nvidia-smi "
            "there, and start the node again",
        )
    elif not count == node.torch_sees == node.ray_gpus:
        findings.error(
            "gpus",
            f"node {node.node}: {count} GPUs by the driver, {node.torch_sees} by PyTorch, {node.ray_gpus:g} "
            "by Ray; install the PyTorch for its CUDA, and give `ray start` the number (--num-gpus)",
        )
    for number, gpu in enumerate(node.gpus):
        if gpu.processes:
            used = f", with {gpu.used_mebibytes} of {gpu.total_mebibytes} MiB"
            findings.warn(
                "gpus",
                f"node {node.node}: GPU {number} ({gpu.name}) is used by process "
                f"{name_first(gpu.processes)}{'' if gpu.used_mebibytes is None else used}; end it, or leave "
                "the GPU to it (CUDA_VISIBLE_DEVICES before `ray start`)",
            )


def _usual(values: Iterable[str | None]) -> str | None:
    """The most frequent value; None of none."""
    common = Counter(values).most_common(1)
    return common[0][0] if common else None
