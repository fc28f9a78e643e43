"""How processes of Ray end: one line on what ended, where, and what to do; and how often they start again."""

import re
from collections.abc import Iterator

from data_catalog.errors import describe_cause

MAX_FAILURES = 3
"""Crashes of a worker, an actor or a trial that are survived, each time from what was last stored."""

_NODE = re.compile(r"\b(?:ip|IP|address): ([0-9a-fA-F.:]*[0-9a-fA-F])")
_MEMORY = re.compile(r"was ([\d.]+ ?[KMGT]?B)(?: used)? / ([\d.]+ ?[KMGT]?B)")
_ALLOCATION = re.compile(
    r"out of memory|can(not|'t) allocate memory|bad_alloc|_ALLOC_FAILED"
    r"|could not create a (primitive|memory object)$",
    re.IGNORECASE,
)
"""What PyTorch says on a GPU and on a processor, the C++ library, NVIDIA's libraries, and oneDNN."""
_RETRIES = re.compile(r"\s*Failed to [\w ]+ after \d+/\d+ attempts.*", re.DOTALL)
"""What Ray Data adds to an error of the code that it ran."""
_LENGTH = 500
_PACKAGES = ("cluster", "data_catalog", "experiments", "stmi")


def describe_failure(error: BaseException, memory_remedy: str = "use nodes with more memory") -> str:
    """One line for an exception of Ray, or of code that Ray ran.

    Of several causes the one that explains the others counts: where a process is killed, those that waited
    for it fail too.

    Args:
        error: What Ray raised.
        memory_remedy: What to do where memory was short.
    """
    causes = list(_causes(error))
    for explain in (_memory, _lost_node, _killed, _set_up, _lost_object):
        for cause in causes:
            if line := explain(cause, memory_remedy):
                return line
    return _plain(next((cause for cause in causes if not _is_wrapper(cause)), causes[-1]))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation of Python, NumPy or PyTorch failed, on the host or on a GPU."""
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or _ALLOCATION.search(str(error)) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that it was raised for, the outermost first."""
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        # Of Ray Train's errors, of what its workers raise, and of those of tasks.
        inner = [*getattr(found, "worker_failures", {}).values()]
        inner += [
            getattr(found, name, None)
            for name in ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__")
        ]
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]


def _is_wrapper(error: BaseException) -> bool:
    return type(error).__module__.startswith("ray.") and not isinstance(error, TimeoutError)


def _memory(error: BaseException, remedy: str) -> str | None:
    text, name = str(error), type(error).__name__
    if "low on memory" in text or "memory usage threshold" in text:
        used = _MEMORY.search(text)
        amounts = f" ({used[1]} of {used[2]} in use)" if used else ""
        return f"Ray ended a process{_node(text)} because the memory of the node ran out{amounts}; {remedy}"
    if ran_out_of_memory(error) and not _is_own(error):
        return f"memory ran out ({_first_line(text) or name}); {remedy}"
    if name == "ObjectStoreFullError":
        return f"Ray's object store is full ({_first_line(text)}); {remedy}"
    return None


def _lost_node(error: BaseException, remedy: str) -> str | None:
    text = str(error)
    if type(error).__name__ == "NodeDiedError" or "node has died" in text or "node died" in text.lower():
        return (
            f"a node of the cluster was lost{_node(text)}; see `ray status`, and run the same command again "
            "once it is back"
        )
    return None


def _killed(error: BaseException, remedy: str) -> str | None:
    text, name = str(error), type(error).__name__
    if name == "WorkerCrashedError" or "Worker unexpectedly exits" in text or "worker died" in text.lower():
        return (
            f"a process{_node(text)} was killed or crashed; as a rule the system has ended it because memory "
            f"ran out (`dmesg` there says so): {remedy}"
        )
    if name in ("LocalRayletDiedError", "RaySystemError", "RpcError"):
        return f"Ray itself ended or does not answer ({_first_line(text)}); run the same command again"
    return None


def _set_up(error: BaseException, remedy: str) -> str | None:
    if type(error).__name__ == "RuntimeEnvSetupError":
        return f"the environment of the workers could not be made ({_last_line(str(error))})"
    if type(error).__name__ == "WorkerGroupStartupTimeoutError":
        return (
            "the cluster had no room for the workers (others hold its CPUs or GPUs: see `ray status`); ask "
            "for fewer workers, or run the same command again when it is free"
        )
    return None


def _lost_object(error: BaseException, remedy: str) -> str | None:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "ObjectLostError" in kinds:
        return (
            "data in Ray's memory was lost with a process or a node that held it; run the same command again"
        )
    if "OutOfDiskError" in kinds:
        return "the disk of Ray's temporary folder is full; make room, or start Ray with another --temp-dir"
    return None


def _plain(error: BaseException) -> str:
    # What the project says of a failure stays, and not what it was made of.
    return _first_line(_RETRIES.sub("", (_is_own(error) and str(error)) or describe_cause(error)))


def _is_own(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _PACKAGES


def _node(text: str) -> str:
    found = _NODE.search(text)
    return f" on node {found[1]}" if found else ""


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:_LENGTH]


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:_LENGTH]
