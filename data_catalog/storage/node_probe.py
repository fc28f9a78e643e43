"""Which nodes of a Ray cluster reach the folders that work needs, before the work begins."""

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from data_catalog.errors import CatalogError, name_first
from data_catalog.ray_session import node_name
from data_catalog.storage import filesystems
from data_catalog.storage.folders import Folder
from data_catalog.storage.patience import without_patience

NODE_SECONDS = 60.0
"""How long a node has to start a process that looks; an idle one needs a few seconds."""
COMPARED_FOLDERS = 200
_UNSEEN = "unseen"
_REMEDY = (
    "give {option} a location that all nodes reach under the same name: a URI such as s3://bucket/{kind}, or "
    "a folder that all of them mount"
)


@dataclass(frozen=True)
class NeededFolder:
    """A folder that the work needs.

    Attributes:
        kind: What it is: `workspace`, `storage` or `catalog`, as the option that names it.
        location: Path or URI.
        is_written: Whether the work writes there; otherwise it only reads.
    """

    kind: str
    location: str
    is_written: bool = True


_checked: set[NeededFolder] = set()
Answer = TypeVar("Answer")


def reach(folders: Sequence[NeededFolder]) -> None:
    """Make sure that this process reaches the folders that are at URIs.

    Raises:
        CatalogError: It does not; says why.
    """
    for folder in folders:
        if "://" in folder.location:
            filesystems.has_folder(*filesystems.open_root(folder.location))


def check_nodes(folders: Sequence[NeededFolder]) -> None:
    """Where Ray has more than one node, make sure that all nodes that may get work see the same files.

    This process writes a small file into each folder; a task on every node reads it, and writes another. Of a
    folder that is only read, every node must see the same folders. What was checked before is not checked
    again. Ray must have been started or joined.

    Raises:
        CatalogError: A node does not see a folder, cannot use it, or does not answer.
    """
    import ray  # noqa: PLC0415 - its import takes seconds

    new = [folder for folder in dict.fromkeys(folders) if folder not in _checked]
    nodes = working_nodes()
    if not new or not nodes.keys() - {ray.get_runtime_context().get_node_id()}:
        return
    name = f".probe-{secrets.token_hex(8)}"
    try:
        expected = []
        for needed in new:
            folder = Folder(needed.location)
            expected.append([] if needed.is_written else folder.list_folders())
            if needed.is_written:
                folder.write(name, name)
        answers = _ask(
            nodes, f"look for {new[0].kind} {new[0].location}", lambda own: _look(own, name, new, expected)
        )
    finally:
        for needed in new:
            if needed.is_written:
                Folder(needed.location).delete_file(name)
    for number, needed in enumerate(new):
        _judge(needed, {nodes[node]: answer[number] for node, answer in answers.items() if answer[number]})
    _checked.update(new)


def nodes_with(folder: Path) -> set[str]:
    """Ids of the nodes that may get work and see the same files in a folder as this process.

    Folders are the same if they and those below them have the same names and times of change, to the
    nanosecond: as one that several machines mount, or an exact copy. Ray must have been started or joined.

    Raises:
        CatalogError: A node does not answer.
    """
    import ray  # noqa: PLC0415 - its import takes seconds

    nodes = working_nodes()
    here = ray.get_runtime_context().get_node_id()
    others = {node: name for node, name in nodes.items() if node != here}
    mine = _times_of_change(folder)
    answers = _ask(others, f"look into {folder}", lambda own: _times_of_change(folder) == mine)
    return {node for node, is_same in answers.items() if is_same} | ({here} & nodes.keys())


def working_nodes() -> dict[str, str]:
    """Names of the nodes that may get work, by id, in the order of the names."""
    import ray  # noqa: PLC0415 - its import takes seconds

    names = {
        node["NodeID"]: node_name(node)
        for node in ray.nodes()
        # A node without CPUs and GPUs, such as a head that only coordinates, gets no work.
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    }
    return dict(sorted(names.items(), key=lambda item: item[1]))


def _times_of_change(folder: Path) -> list[tuple[str, int]]:
    """A folder and the first of those below it, each with its time of change; empty where there is none."""
    below = islice(os.walk(folder), COMPARED_FOLDERS)
    return sorted(
        (str(Path(name).relative_to(folder)), Path(name).stat().st_mtime_ns) for name, _, _ in below
    )


def _judge(folder: NeededFolder, wrong: dict[str, str]) -> None:
    """Refuse a folder that nodes do not see or cannot use.

    Args:
        folder: The folder.
        wrong: Node to what is wrong there.
    """
    if not wrong:
        return
    remedy = _REMEDY.format(
        option=f"--{folder.kind}", kind={"workspace": "runs"}.get(folder.kind, folder.kind)
    )
    shown = filesystems.presentable_uri(folder.location)
    unseen = [node for node, reason in wrong.items() if reason == _UNSEEN]
    if unseen:
        raise CatalogError(
            f"{folder.kind} {shown} is not shared by the nodes of the Ray cluster: {name_first(unseen)} "
            f"{'does' if len(unseen) == 1 else 'do'} not see what this process has there; {remedy}"
        )
    node, reason = next(iter(wrong.items()))
    raise CatalogError(f"{folder.kind} {shown} cannot be used on node {node}: {reason}")


def _ask(nodes: dict[str, str], what: str, answer: Callable[[str], Answer]) -> dict[str, Answer]:
    """What a function gives on each node, by the id of the node.

    Args:
        nodes: Id to name.
        what: What it does there, for messages.
        answer: Called on each node with a name that no other node gets.
    """
    import ray  # noqa: PLC0415 - its import takes seconds
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    # Without CPUs, so that it runs on a busy node, too.
    task = ray.remote(num_cpus=0, max_retries=0)(answer)
    asked = secrets.token_hex(8)
    tasks = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            f".probe-{asked}-{number}"
        ): node
        for number, node in enumerate(nodes)
    }
    done, waiting = ray.wait(list(tasks), num_returns=len(tasks), timeout=NODE_SECONDS) if tasks else ([], [])
    if waiting:
        silent = [nodes[tasks[one]] for one in waiting]
        raise CatalogError(
            f"nodes of the Ray cluster started no process within {NODE_SECONDS:.0f} s: {name_first(silent)}; "
            "see `ray status`, and run the same command again once they are idle, or without them"
        )
    answers = {}
    for one in done:
        try:
            answers[tasks[one]] = ray.get(one)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise CatalogError(f"node {nodes[tasks[one]]} could not {what}: {reason}") from error
    return answers


def _look(own: str, name: str, folders: Sequence[NeededFolder], expected: list[list[str]]) -> list[str]:
    """The task on a node.

    Args:
        own: Name of the file that it writes.
        name: Name and content of the file that it reads.
        folders: The folders.
        expected: Folders that it must see in each of them.
    """
    with without_patience():
        return [_fault(own, name, *one) for one in zip(folders, expected, strict=True)]


def _fault(own: str, name: str, needed: NeededFolder, expected: list[str]) -> str:
    folder = Folder(needed.location)
    try:
        if not needed.is_written:
            return _UNSEEN if set(expected) - set(folder.list_folders()) else ""
        if folder.read(name).decode() != name:
            return _UNSEEN
        folder.write(own, name)
        folder.delete_file(own)
    except FileNotFoundError:
        return _UNSEEN
    except (CatalogError, OSError) as error:
        return str(error)
    return ""
