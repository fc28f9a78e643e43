"""An MLflow server of a test's own, on loopback."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.services import LOOPBACK, mlflow_server

STARTS_WITHIN_SECONDS = 120


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return free.getsockname()[1]


@contextmanager
def serving(
    store: str, folder: Path, port: int, started: Callable[[subprocess.Popen], None] = lambda process: None
) -> Iterator[str]:
    """Run a server while the block runs; yields its address.

    Args:
        store: URI of its database.
        folder: Where it keeps its artifacts and its log.
        port: Where it listens.
        started: Called with its process.
    """
    folder.mkdir(exist_ok=True)
    service = mlflow_server(port, store, folder / "artifacts", folder / "earlier_artifacts")
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(service.command, env=service.environment, stdout=log, stderr=log)
    started(process)
    try:
        until = time.monotonic() + STARTS_WITHIN_SECONDS
        while not service.is_healthy():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
