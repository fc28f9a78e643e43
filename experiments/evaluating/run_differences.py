"""In what two runs of the same settings differ: nothing, where one was disturbed and lost nothing."""

import math
from typing import Any

from experiments.run.run_folder import RunFolder
from experiments.tracking.journal import Event

OWN = frozenset({"time", "began", "seconds", "worker_seconds", "slow_worker", "processes", "checkpoint"})
"""What an event says of its start alone: when, how fast, and where."""

VARYING = frozenset({"weights", "workers", "threads", "step_losses", "cmc"})
"""What is not compared where rounding may differ: it magnifies differences, or belongs to a start, too."""


def find_differences(run: RunFolder, other: RunFolder, tolerance: float = 0.0) -> tuple[str, ...]:
    """What differs between two finished runs, one line each.

    Args:
        run: The one whose differences are named.
        other: What it is held against.
        tolerance: How much numbers may differ, relatively; with 0, runs must be equal to the last bit, the
            final weights and the ranks of all test queries included.

    Raises:
        RunFolderError: One of them is not finished.
        DamagedFileError: A file of one of them is damaged.
    """
    ours, theirs = _facts(run), _facts(other)
    found = [f"{name} is missing" for name in theirs.keys() - ours.keys()]
    found += [
        f"{name} differs"
        for name in ours
        if name in theirs and not _are_close(ours[name], theirs[name], tolerance)
    ]
    if tolerance:
        return tuple(found)
    ended, expected = run.finished_result, other.finished_result
    parts = ("losses", "metrics", "choices", "untrained")
    found += [
        f"{name} of the result differ" for name in parts if getattr(ended, name) != getattr(expected, name)
    ]
    if not run.read_queries().equals(other.read_queries()):
        found.append("the ranks of the test queries differ")
    return tuple(found)


def _are_close(ours: Any, theirs: Any, tolerance: float) -> bool:
    """Whether all numbers of two trees of dicts and lists are as close as that, and all else is equal."""
    if tolerance and isinstance(ours, dict) and isinstance(theirs, dict):
        shared = [ours.keys() - VARYING, theirs.keys() - VARYING]
        return shared[0] == shared[1] and all(
            _are_close(ours[name], theirs[name], tolerance) for name in shared[0]
        )
    if tolerance and isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(
            _are_close(one, other, tolerance) for one, other in zip(ours, theirs, strict=True)
        )
    if tolerance and isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)
    return bool(ours == theirs)


def _facts(run: RunFolder) -> dict[str, Event]:
    """What the journal has of each epoch and of the evaluations, with the digest of the last weights."""
    events = {f"epoch {event['epoch']}": event for event in run.journal.epochs()}
    events |= {name: run.journal.find(name) for name in ("untrained", "test")}
    return {
        name: {key: value for key, value in event.items() if key not in OWN} for name, event in events.items()
    }
