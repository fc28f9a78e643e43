"""Reports of the checks, stored in the catalog, so that a thousand runs on the same tables check them once.

`<catalog>/<dataset>/checks/<key>.json` holds a report. The key is a hash of the digests of the tables and of
the settings of the checks; if these leave the junk rule open, it is the card's.
"""

import logging

from pydantic import ValidationError

from data_catalog.checks.data_checks import CheckSettings, junk_rule, run_checks
from data_catalog.checks.findings import CheckReport, Finding
from data_catalog.checks.newest_tables import NewestTables
from data_catalog.errors import NotWritableError
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.storage import filesystems
from data_catalog.tables.digests import json_digest

FOLDER = "checks"
CHECKS_VERSION = 4
"""Increased whenever the checks would report otherwise on the same data."""

_LOGGER = logging.getLogger(__name__)


class _Sealed(Record):
    """A report as it is stored, with the digest that shows a change."""

    report: CheckReport
    seal: str

    @classmethod
    def of(cls, report: CheckReport) -> "_Sealed":
        return cls(report=report, seal=json_digest(report.model_dump(mode="json")))


def load_or_run_checks(
    tables: NewestTables, settings: CheckSettings | None = None, progress: Progress = no_progress
) -> CheckReport:
    """The report of `run_checks`, from the catalog if the same tables had the same checks before.

    In a catalog that cannot be written to, the report is not stored. If it has no hashes of the images
    either, they are not compared, and a warning of the report says so.

    Args:
        tables: The tables.
        settings: Limits of the checks.
        progress: Called as shards are hashed.
    """
    settings = settings or CheckSettings()
    settings = settings.model_copy(update={"junk": junk_rule(tables.samples, settings)})
    request = {
        "version": CHECKS_VERSION,
        "settings": settings.model_dump(),
        "tables": {name: table.digest for name, table in tables.named.items()},
    }
    samples = tables.samples
    filesystem, path = filesystems.open_root(
        filesystems.join(
            samples.catalog, samples.manifest.dataset, FOLDER, f"{json_digest(request)[:16]}.json"
        )
    )
    if filesystems.exists(filesystem, path):
        stored = _read(filesystems.read_buffer(filesystem, path).to_pybytes())
        if stored is not None:
            return stored
        _LOGGER.warning("%s holds no report, or was changed; the data is checked again", path)
    report = run_checks_anywhere(tables, settings, progress)
    try:
        sealed = _Sealed.of(report).model_dump_json(indent=1)
        filesystems.write_atomically(filesystem, path, sealed.encode() + b"\n")
    except NotWritableError as error:
        _LOGGER.warning("the report of the checks is not stored, so every run makes its own: %s", error)
    return report


def _read(data: bytes) -> CheckReport | None:
    """The report in a file; None where there is none, or it was changed."""
    try:
        stored = _Sealed.model_validate_json(data)
    except ValidationError:
        return None
    return stored.report if stored == _Sealed.of(stored.report) else None


def run_checks_anywhere(tables: NewestTables, settings: CheckSettings, progress: Progress) -> CheckReport:
    """The report of `run_checks`; without a look for duplicates where their hashes cannot be stored."""
    try:
        return run_checks(tables, settings, progress)
    except NotWritableError as error:
        return _without_images(tables, settings, error)


def _without_images(tables: NewestTables, settings: CheckSettings, error: NotWritableError) -> CheckReport:
    report = run_checks(tables, settings.model_copy(update={"images": False}))
    left_out = Finding(
        check="duplicates_not_checked",
        message="duplicate images were not looked for, since the hashes of the images cannot be stored: "
        f"{error}",
    )
    return report.model_copy(update={"warnings": (*report.warnings, left_out)})
