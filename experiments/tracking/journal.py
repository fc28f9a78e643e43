"""The journal of a run: an append-only file of JSON lines, the complete record of what happened.

MLflow and the reports are made from it. A line is written whole or, if the machine dies, cut off at
the end of the file. Readers skip a line that is cut off; nothing overwrites it.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]
"""An event: `event` is its name; what else it has depends on that."""


class Journal:
    """Events of one run, in the order in which they happened.

    Args:
        path: The file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **facts: Any) -> None:
        """Add an event; it is on the disk when this returns."""
        line = json.dumps({"event": event, "time": time.time(), **facts}, allow_nan=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self._ends_whole():
                line = "\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def record(self, facts: Event, checkpoint: str | None) -> None:
        """Add what a worker reported, and earlier reports that a crash kept from being written.

        Args:
            facts: `event`, its name, and what belongs to it; `history`, if there, holds earlier reports.
            checkpoint: Where the report's checkpoint is kept.
        """
        facts = dict(facts)
        known = {(past["event"], past.get("epoch")) for past in self.read()}
        for past in facts.pop("history", []):
            if (past["event"], past.get("epoch")) not in known:
                self.append(**past)
        self.append(**facts, checkpoint=checkpoint)

    def read(self) -> list[Event]:
        """All complete events."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # cut off by a crash
        return events

    def epochs(self) -> list[Event]:
        """The epoch events by epoch; of an epoch that was repeated after a crash, the last one."""
        latest = {event["epoch"]: event for event in self.read() if event["event"] == "epoch"}
        return [latest[epoch] for epoch in sorted(latest)]

    def last(self, event: str) -> Event | None:
        """The last event of a kind, or None."""
        found = [entry for entry in self.read() if entry["event"] == event]
        return found[-1] if found else None

    @property
    def size(self) -> int:
        """Bytes written so far; grows with every event."""
        return self.path.stat().st_size if self.path.exists() else 0

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
