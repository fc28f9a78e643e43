"""The journal of a run: JSON lines that are only ever added to, the complete record of what happened.

MLflow and the reports are made from it. On a disk it is a file, whose lines one can follow with `tail -f`. A
line is written whole or, if the machine dies, cut off at the end of the file. Readers leave out a line that
is cut off or damaged, and say so; nothing overwrites it. Object storage cannot add to an object, so there the
writer replaces the whole journal with each event; it is small, and has one writer at a time (see
`journal_folder`).
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pyarrow import fs

from data_catalog.errors import DamagedFileError
from data_catalog.storage import filesystems
from data_catalog.storage.claims import Claim

logger = logging.getLogger(__name__)

BEGINNINGS = ("started", "resumed", "restarted")
"""Events that say after which epoch training goes on; `started` of an older version does not."""

Event = dict[str, Any]
"""An event: `event` is its name; what else it has depends on that."""
INTERRUPTED = "interrupted"
"""The last event of a start that was asked to stop, after its checkpoint."""


class Journal:
    """Events of one run, in the order in which they happened.

    Args:
        location: Path of the file, whose folder must exist, or URI of the object.

    Attributes:
        claim: The right to write of a writer that can lose it; None where that is impossible, or not known.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self.claim: Claim | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "claim": self.claim}

    def append(self, event: str, **facts: Any) -> None:
        """Add an event; it is stored when this returns.

        Raises:
            LostClaimError: Another process has the right to write now.
            NotWritableError: The disk is full, or it or object storage cannot be written to.
        """
        line = json.dumps({"event": event, "time": time.time(), **facts}, allow_nan=False) + "\n"
        filesystem, path = self._opened
        is_file = isinstance(filesystem, fs.LocalFileSystem)
        # Read before the claim is checked: a writer that has lost its claim must not store an old copy over
        # what its successor wrote.
        before = b"" if is_file else self._read()
        with self.guarded():
            if is_file:
                _add(Path(path), line)
            else:
                filesystems.write_atomically(filesystem, path, before + line.encode())

    def guarded(self) -> AbstractContextManager[None]:
        """Context in which this process has the right to write, as `Claim.guarding` says."""
        return nullcontext() if self.claim is None else self.claim.guarding()

    def record(self, facts: Event, checkpoint: str | None) -> None:
        """Add what a worker reported, and earlier reports that a crash kept from being written.

        Args:
            facts: `event`, its name, and what belongs to it; `history`, if there, holds earlier reports.
            checkpoint: Where the report's checkpoint is kept.
        """
        facts = dict(facts)
        known = {past["event"] for past in self.read()} - {"epoch"}
        if history := facts.pop("history", None):
            # An epoch that training went back behind does not count: its repetition may be the lost report.
            epochs = {past["epoch"] for past in self.epochs()}
            for past in history:
                if past["event"] not in known and past.get("epoch") not in epochs:
                    self.append(**past)
        if facts["event"] == "untrained" and "untrained" in known:
            # A start before the first checkpoint: what it measured again is known.
            kept = ("began", "seconds", "processes")
            facts = {
                "event": "restarted",
                "epoch": 0,
                **{name: facts[name] for name in kept if name in facts},
            }
        self.append(**facts, checkpoint=checkpoint)

    def read(self) -> list[Event]:
        """All complete events."""
        events = []
        lines = self._read().split(b"\n")
        for number, line in enumerate(lines, start=1):
            event = _parse(line)
            if event is not None:
                events.append(event)
            elif number < len(lines):
                # What follows the last end of a line is being written, or was cut off there by a crash.
                _warn_of_line(self.location, number)
        return events

    def epochs(self) -> list[Event]:
        """The epoch events by epoch, as far as training has got now.

        Where training went back to a checkpoint, or to its start, the epochs after that do not count until
        they are repeated.
        """
        return current_epochs(self.read())

    def last(self, event: str) -> Event | None:
        """The last event of a kind, or None."""
        found = [entry for entry in self.read() if entry["event"] == event]
        return found[-1] if found else None

    def find(self, event: str) -> Event:
        """The last event of a kind that every run has when its training has ended.

        Raises:
            DamagedFileError: There is none.
        """
        if (found := self.last(event)) is None:
            raise DamagedFileError(
                self.location,
                f"its event {event!r} is missing",
                "restore it from a copy, or move the folder away and train the run anew",
            )
        return found

    @property
    def size(self) -> int:
        """Bytes written so far; grows with every event."""
        filesystem, path = self._opened
        return filesystem.get_file_info(path).size or 0

    def _read(self) -> bytes:
        try:
            return filesystems.read_bytes(*self._opened)
        except FileNotFoundError:
            return b""

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return filesystems.open_root(self.location)


def current_epochs(events: Sequence[Event]) -> list[Event]:
    """The epoch events among those of a journal, as `Journal.epochs` says."""
    latest: dict[int, Event] = {}
    for event in events:
        if event["event"] == "epoch":
            latest[event["epoch"]] = event
        elif event["event"] in BEGINNINGS and "epoch" in event:
            latest = {epoch: past for epoch, past in latest.items() if epoch <= event["epoch"]}
    return [latest[epoch] for epoch in sorted(latest)]


def _add(path: Path, line: str) -> None:
    """Add a line to a file on a disk, after the end of one that was cut off."""
    try:
        with path.open("a+b") as file:
            if file.tell() and not _ends_whole(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise filesystems.not_written(str(path), error) from error


def _parse(line: bytes) -> Event | None:
    """The event of a line; None where it holds none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("event"), str)
    return event if is_event and isinstance(event.get("time"), int | float) else None


@cache
def _warn_of_line(location: str, number: int) -> None:
    """Say once that a line is left out: journals are read every second."""
    logger.warning(
        "%s: line %d is cut off or damaged, and is left out; the other events are used", location, number
    )


def _ends_whole(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
