"""A training as a user starts it: a process that is watched through its journal, ended, and begun again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from data_catalog.storage.folders import Folder
from experiments.recipes import ROOT
from experiments.run.run_folder import TRAIN, RunFolder
from experiments.tracking.journal import Event

LOOK_SECONDS = 0.02
REMOTE_LOOK_SECONDS = 0.5
"""In object storage each look is a request."""
HEAD = "gcs_server"
"""Name of the process of Ray that all others need."""
LAST_SHARE = 0.75
"""Nothing is disturbed after this share of the steps: the run must not end before the fault comes."""
TRAINING_BEGINS = ("untrained", "restarted", "resumed")
"""The first event of a start, once its workers train."""


class EndedError(Exception):
    """The training ended, or took too long, before something came that it was to come to."""


class TrainingProcess:
    """`train.py` with the same options, again and again.

    Args:
        options: Options of the script.
        workspace: Folder or URI of its own.
        log: File for its errors; what it prints goes beside it.
        most_seconds: How long each thing that is waited for may take.

    Attributes:
        options: The options that it was given.
        command: Program and arguments; may be added to before a start.
        environment: Variables that it has beside those of this process; may be added to before a start.
        starts: How often it was started.
    """

    def __init__(self, options: Sequence[str], workspace: Folder, log: Path, most_seconds: float) -> None:
        script = str(ROOT / "experiments" / "train.py")
        self.options = options
        self.command = [sys.executable, script, *options, "--json", "--workspace", workspace.location]
        self.environment: dict[str, str] = {}
        self.workspace = workspace
        self.log = log
        self._printed = log.with_suffix(".json")
        self.most_seconds = most_seconds
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._look_seconds = LOOK_SECONDS if workspace.is_local else REMOTE_LOOK_SECONDS

    def beside(self, *options: str) -> "TrainingProcess":
        """Another training, with more options, in a workspace beside that of this one."""
        workspace, log = self.workspace, self.log
        beside = workspace.parent / f"{workspace.name}-beside"
        more = [*self.options, *options]
        return TrainingProcess(more, beside, log.with_name(f"beside-{log.name}"), self.most_seconds)

    def __enter__(self) -> "TrainingProcess":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process is not None:
            # What Ray started on this machine may be left of a driver that was killed.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def start(self) -> None:
        """Give the command, also once more after its end."""
        self.starts += 1
        with self.log.open("w") as log, self._printed.open("w") as printed:
            self._process = subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=log,
                # So that Ctrl-C reaches it through the end of this process, and all of it can be ended.
                start_new_session=True,
            )

    @property
    def run(self) -> RunFolder | None:
        """The only run of the workspace, once it is begun."""
        names = (self.workspace / TRAIN).list_folders()
        return RunFolder(self.workspace / TRAIN / names[0]) if names else None

    def events(self) -> list[Event]:
        """What its journal says so far."""
        run = self.run
        return [] if run is None else run.journal.read()

    def send(self, number: int) -> float:
        """Send its driver a signal; returns when, in seconds since 1970."""
        assert self._process is not None
        sent = time.time()
        self._process.send_signal(number)
        return sent

    def kill_head(self) -> float:
        """End the head of the Ray that the command has started; returns when, in seconds since 1970."""
        assert self._process is not None
        started = psutil.Process(self._process.pid).children(recursive=True)
        (head,) = (process for process in started if process.name() == HEAD)
        sent = time.time()
        head.kill()
        return sent

    def wait_for_end(self) -> int:
        """Wait until the process ends; returns its exit status, negative for a signal.

        Raises:
            EndedError: It does not end.
        """
        assert self._process is not None
        try:
            return self._process.wait(self.most_seconds)
        except subprocess.TimeoutExpired:
            raise EndedError(f"the command did not end within {self.most_seconds:.0f} s") from None

    def finish(self) -> RunFolder:
        """The run, once it is finished.

        Raises:
            EndedError: The command failed.
        """
        if status := self.wait_for_end():
            raise EndedError(f"the command ended with exit status {status}: {self.last_words()}")
        return RunFolder(self.result["folder"])

    @property
    def result(self) -> dict[str, Any]:
        """What the command printed when it was finished."""
        return json.loads(self._printed.read_text())

    def last_words(self) -> str:
        """The error that it printed last, or else its last line."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it printed nothing"])[-1]

    def wait(self, has_come: Callable[[list[Event]], Any]) -> list[Event]:
        """Wait until its journal has something; returns what it says.

        Raises:
            EndedError: The process ended without it, or it did not come in time.
        """
        assert self._process is not None
        deadline = time.monotonic() + self.most_seconds
        while True:
            has_ended = self._process.poll() is not None
            if has_come(events := self.events()):
                return events
            if has_ended:
                raise EndedError(f"the command ended before that: {self.last_words()}")
            if time.monotonic() > deadline:
                raise EndedError(f"nothing came within {self.most_seconds:.0f} s")
            time.sleep(self._look_seconds)

    def wait_for_training(self, since: float) -> float:
        """Wait until training goes on after a fault; the command is given again where it fails.

        Args:
            since: When the fault came, in seconds since 1970.

        Returns:
            Seconds from then on.

        Raises:
            EndedError: It fails again.
        """

        def find_begin(events: list[Event]) -> list[float]:
            times = (event["time"] for event in events if event["event"] in TRAINING_BEGINS)
            return [began for began in times if began > since]

        try:
            events = self.wait(find_begin)
        except EndedError:
            assert self._process is not None
            if self._process.poll() is None:
                raise
            self.start()
            events = self.wait(find_begin)
        return find_begin(events)[0] - since


def most_moments(steps: int) -> int:
    """After how many steps of a run faults may come."""
    return max(1, int(LAST_SHARE * steps) - 1)


def steps_since_begin(events: list[Event]) -> int:
    """The last step that a journal has of the current start beyond its beginning, or 0."""
    begun = [number for number, event in enumerate(events) if event["event"] in TRAINING_BEGINS]
    return max((event.get("step", 0) for event in events[begun[-1] + 1 :]), default=0) if begun else 0


def names_of(events: list[Event]) -> set[str]:
    """The names of events."""
    return {event["event"] for event in events}


def processes_of(events: list[Event]) -> list[dict[str, Any]]:
    """Where the workers of the current start run, by rank: `host` and `pid`."""
    found = [event["processes"] for event in events if "processes" in event]
    return found[-1] if found else []
