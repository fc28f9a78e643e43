"""Wait until so many nodes of the Ray cluster at $RAY_ADDRESS are there.

    python cluster/slurm/wait_for_nodes.py 4

Exit status 1: they were not within five minutes (or --seconds); the message says how many were.
"""

import argparse
import logging
import os
import socket
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.5


def wait_for_nodes(address: str, count: int, seconds: float) -> int:
    """Wait for nodes; returns how many were there at the end.

    Args:
        address: Host and port of the cluster.
        count: How many there should be.
        seconds: How long to wait.
    """
    end = time.monotonic() + seconds
    host, _, port = address.rpartition(":")
    while not _answers(host, int(port)):
        if time.monotonic() > end:
            return 0
        time.sleep(POLL_SECONDS)
    import ray  # noqa: PLC0415 - takes seconds, in which nothing may answer yet

    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    while (alive := sum(node["Alive"] for node in ray.nodes())) < count and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    ray.shutdown()
    return alive


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=POLL_SECONDS).close()
    except OSError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, help="number of nodes, the head counted")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to wait (default: 300)")
    given = parser.parse_args(arguments)
    address = os.environ["RAY_ADDRESS"]
    alive = wait_for_nodes(address, given.count, given.seconds)
    if alive >= given.count:
        return 0
    print(
        f"error: {alive} of {given.count} Ray nodes are at {address} after {given.seconds:g} s; see what "
        "`ray start` printed on the others",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))
    sys.exit(main())
