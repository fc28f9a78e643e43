"""A folder with a journal and one writer at a time: that of a run, or of a study."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

from data_catalog.storage.claims import ClaimedError, claim
from data_catalog.storage.folders import Folder
from experiments.tracking.journal import Journal

JOURNAL = "journal.jsonl"


class JournalFolder(Folder):
    """The files of a run or a study, on a disk or in object storage; its name is that of the run or study.

    Whoever writes in it holds its claim: a lock on a disk, and a claim that is renewed in object storage.
    """

    @cached_property
    def journal(self) -> Journal:
        """What happened."""
        return Journal(self.file(JOURNAL))

    @contextmanager
    def claimed(self, refusal: Exception, wait: Callable[[], bool] | None = None) -> Iterator[None]:
        """Hold the right to write in the folder.

        Args:
            refusal: Raised where another process holds the right.
            wait: As in `data_catalog.storage.claims.claim`.
        """
        with ExitStack() as stack:
            try:
                self.journal.claim = stack.enter_context(claim(self.location, wait=wait))
            except ClaimedError:
                raise refusal from None
            stack.callback(setattr, self.journal, "claim", None)
            yield

    def write(self, name: str, data: str | bytes) -> None:
        """As in `Folder`.

        Raises:
            LostClaimError: This process held the claim, and another one has it now.
        """
        with self.journal.guarded():
            super().write(name, data)
