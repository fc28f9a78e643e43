"""What checks find: errors stop a run, warnings are logged with it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from data_catalog.records import Record


class Finding(Record):
    """A check that does not hold."""

    check: str
    """Name of the check."""
    message: str
    """What was found and what to do."""
    rows: tuple[str, ...] = ()
    """Ids of the samples that break it; none where it is not about samples."""


class CheckReport(Record):
    """What the checks found."""

    errors: tuple[Finding, ...]
    """These stop a run."""
    warnings: tuple[Finding, ...]
    """These are logged with a run."""


@dataclass
class Findings:
    """Findings while they are collected."""

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    def error(self, check: str, message: str, rows: Iterable[str] = ()) -> None:
        """Add what stops a run."""
        self.errors.append(Finding(check=check, message=message, rows=tuple(map(str, rows))))

    def warn(self, check: str, message: str, rows: Iterable[str] = ()) -> None:
        """Add what is logged with a run."""
        self.warnings.append(Finding(check=check, message=message, rows=tuple(map(str, rows))))

    def report(self) -> CheckReport:
        """All of them."""
        return CheckReport(errors=tuple(self.errors), warnings=tuple(self.warnings))
