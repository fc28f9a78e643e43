"""A folder with a journal and one writer at a time: that of a run, or of a study."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_catalog.storage import filesystems
from data_catalog.storage.claims import ClaimedError, claim
from experiments.tracking.journal import Journal


@dataclass(frozen=True)
class JournalFolder:
    """The files of a run or a study.

    Attributes:
        path: Its last part is the name.
    """

    path: Path

    @property
    def name(self) -> str:
        """The name of the run or the study."""
        return self.path.name

    @cached_property
    def journal(self) -> Journal:
        """What happened."""
        return Journal(self.path / "journal.jsonl")

    @contextmanager
    def claimed(self, refusal: Exception, wait: Callable[[], bool] | None = None) -> Iterator[None]:
        """Hold the right to write in the folder.

        Args:
            refusal: Raised where another process holds the right.
            wait: As in `data_catalog.storage.claims.claim`.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(claim(self.path, wait=wait))
            except ClaimedError:
                raise refusal from None
            yield

    def write(self, name: str, text: str) -> Path:
        """Write a file completely or not at all; returns its path."""
        path = self.path / name
        filesystems.write_atomically(*filesystems.open_root(path), text.encode())
        return path
