"""In what two runs of the same settings differ: nothing, where one was disturbed and lost nothing."""

from experiments.run.run_folder import RunFolder
from experiments.tracking.journal import Event

OWN = frozenset({"time", "began", "seconds", "worker_seconds", "slow_worker", "processes", "checkpoint"})
"""What an event says of its start alone: when, how fast, and where."""


def find_differences(run: RunFolder, other: RunFolder) -> tuple[str, ...]:
    """What differs between two finished runs, one line each; empty where they are equal to the last bit.

    Args:
        run: The one whose differences are named.
        other: What it is held against.

    Raises:
        RunFolderError: One of them is not finished.
        DamagedFileError: A file of one of them is damaged.
    """
    ours, theirs = _facts(run), _facts(other)
    found = [f"{name} is missing" for name in theirs.keys() - ours.keys()]
    found += [f"{name} differs" for name in ours if name in theirs and ours[name] != theirs[name]]
    ended, expected = run.finished_result, other.finished_result
    parts = ("losses", "metrics", "choices", "untrained")
    found += [
        f"{name} of the result differ" for name in parts if getattr(ended, name) != getattr(expected, name)
    ]
    if not run.read_queries().equals(other.read_queries()):
        found.append("the ranks of the test queries differ")
    return tuple(found)


def _facts(run: RunFolder) -> dict[str, Event]:
    """What the journal has of each epoch and of the evaluations, with the digest of the last weights."""
    events = {f"epoch {event['epoch']}": event for event in run.journal.epochs()}
    events |= {name: run.journal.find(name) for name in ("untrained", "test")}
    return {
        name: {key: value for key, value in event.items() if key not in OWN} for name, event in events.items()
    }
