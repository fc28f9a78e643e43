"""Which worker holds the others up: in every step all of them wait for the slowest one."""

import socket
import statistics
from collections.abc import Sequence

from experiments.run.workers.session import Session
from experiments.tracking.journal import Event

SLOW = 1.5
"""How many times as long as the median of the others a worker takes that is named as slow."""


def worker_times(session: Session, own_seconds: float) -> Event:
    """What the journal has of an epoch: `worker_seconds` by rank and, where there is one, the `slow_worker`.

    Args:
        session: The worker's; all of them call this.
        own_seconds: What this worker took, without its waiting for the others.
    """
    gathered = session.gather((round(own_seconds, 4), socket.gethostname()))
    seconds = [own for own, _ in gathered]
    rank = find_slow(seconds)
    slow = {} if rank is None else {"slow_worker": {"rank": rank, "host": gathered[rank][1]}}
    return {"worker_seconds": seconds} | slow


def find_slow(seconds: Sequence[float]) -> int | None:
    """The rank of the slowest worker where it takes much longer than the others, or None."""
    rank = max(range(len(seconds)), key=lambda one: seconds[one])
    others = [own for one, own in enumerate(seconds) if one != rank]
    return rank if others and seconds[rank] > SLOW * statistics.median(others) else None
