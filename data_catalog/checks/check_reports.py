"""Reports of the checks, kept in the catalog, so that a thousand runs on the same tables check them once.

`<catalog>/<dataset>/checks/<key>.json` holds a report; the key is over the digests of the tables and over the
settings of the checks, with what the card says in the place of what they leave open.
"""

import logging

from pydantic import ValidationError

from data_catalog.checks.artifacts import Artifacts
from data_catalog.checks.data_checks import CheckReport, CheckSettings, Finding, junk_rule, run_checks
from data_catalog.errors import NotWritableError
from data_catalog.progress import Progress
from data_catalog.records import Record
from data_catalog.storage import filesystems
from data_catalog.tables.table import json_digest

FOLDER = "checks"
CHECKS_VERSION = 3
"""Raised whenever the same data would be reported of otherwise."""

_LOGGER = logging.getLogger(__name__)


class _Sealed(Record):
    """A report as it is stored, with the digest that shows a change."""

    report: CheckReport
    seal: str

    @classmethod
    def of(cls, report: CheckReport) -> "_Sealed":
        return cls(report=report, seal=json_digest(report.model_dump(mode="json")))


def checked(
    artifacts: Artifacts, settings: CheckSettings | None = None, progress: Progress | None = None
) -> CheckReport:
    """What `run_checks` finds, from the catalog where the same was asked of the same tables before.

    A catalog that cannot be written to is no hindrance: the report is not kept then. Where it holds no hashes
    of the images either, they are not compared, and a warning of the report says so.

    Args:
        artifacts: The tables.
        settings: Where to draw the lines.
        progress: Called as shards are hashed.
    """
    settings = settings or CheckSettings()
    settings = settings.model_copy(update={"junk": junk_rule(artifacts.samples, settings)})
    asked = {
        "version": CHECKS_VERSION,
        "settings": settings.model_dump(),
        "tables": {name: table.digest for name, table in artifacts.named.items()},
    }
    samples = artifacts.samples
    filesystem, path = filesystems.open_root(
        filesystems.join(samples.catalog, samples.manifest.dataset, FOLDER, f"{json_digest(asked)[:16]}.json")
    )
    if filesystems.exists(filesystem, path):
        kept = _read(filesystems.read_buffer(filesystem, path).to_pybytes())
        if kept is not None:
            return kept
        _LOGGER.warning("%s holds no report, or was changed; the data is checked again", path)
    try:
        report = run_checks(artifacts, settings, progress)
    except NotWritableError as error:
        return _without_images(artifacts, settings, error)
    try:
        sealed = _Sealed.of(report).model_dump_json(indent=1)
        filesystems.write_atomically(filesystem, path, sealed.encode() + b"\n")
    except NotWritableError as error:
        _LOGGER.warning("the report of the checks is not kept, so every run makes its own: %s", error)
    return report


def _read(data: bytes) -> CheckReport | None:
    """The report in a file; None where it is none, or not as it was written."""
    try:
        stored = _Sealed.model_validate_json(data)
    except ValidationError:
        return None
    return stored.report if stored == _Sealed.of(stored.report) else None


def _without_images(artifacts: Artifacts, settings: CheckSettings, error: NotWritableError) -> CheckReport:
    report = run_checks(artifacts, settings.model_copy(update={"images": False}))
    left_out = Finding(
        check="duplicates_not_checked",
        message="duplicate images were not looked for, since the hashes of the images cannot be stored: "
        f"{error}",
    )
    return report.model_copy(update={"warnings": (*report.warnings, left_out)})
