"""An MLflow server of its own, which goes away and comes back."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from stmi.network import why_unreachable

LOOPBACK = "127.0.0.1"
START_SECONDS = 120.0
"""How long it may take to start."""


class MlflowServer:
    """A server on loopback, with its database and its artifacts in a folder.

    Args:
        folder: Folder of this machine.

    Attributes:
        uri: Its address, the same after each start.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            port = free.getsockname()[1]
        self.uri = f"http://{LOOPBACK}:{port}"
        self.folder = folder
        self._command = [
            *(
                sys.executable,
                "-m",
                "mlflow",
                "server",
                f"--host={LOOPBACK}",
                f"--port={port}",
                "--workers=1",
            ),
            f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}",
            f"--default-artifact-root={(folder / 'artifacts').as_uri()}",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "MlflowServer":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, also once more; returns once it answers.

        Raises:
            OSError: It does not.
        """
        # Many of MLflow's variables are options of its server.
        own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment = own | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        log = self.folder / "server.log"
        with log.open("w") as output:
            self._process = subprocess.Popen(
                self._command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_SECONDS
        while why_unreachable(self.uri) is not None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise OSError(f"an MLflow server does not start: {(lines or ['it printed nothing'])[-1]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End it, and its processes, with SIGKILL; returns once nothing listens there."""
        assert self._process is not None
        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(family)
