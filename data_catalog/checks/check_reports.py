"""Reports of the checks, kept in the catalog, so that a thousand runs on the same tables check them once.

`<catalog>/<dataset>/checks/<key>.json` holds a report; the key is over the digests of the tables and over the
settings of the checks, with what the card says in the place of what they leave open.
"""

import logging
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from data_catalog.checks.artifacts import Artifacts
from data_catalog.checks.data_checks import CheckReport, CheckSettings, Finding, junk_rule, run_checks
from data_catalog.errors import NotWritableError
from data_catalog.storage import filesystems
from data_catalog.tables.building import Progress
from data_catalog.tables.table import json_digest

FOLDER = "checks"
CHECKS_VERSION = 3
"""Raised whenever the same data would be reported of otherwise."""

_REPORT = TypeAdapter(CheckReport)
_LOGGER = logging.getLogger(__name__)


class _Sealed(BaseModel):
    """A report as it is kept, with the digest by which a change is found."""

    report: dict[str, Any]
    seal: str


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
        told = _REPORT.dump_python(report, mode="json")
        sealed = _Sealed(report=told, seal=json_digest(told))
        filesystems.write_atomically(filesystem, path, sealed.model_dump_json(indent=1).encode() + b"\n")
    except NotWritableError as error:
        _LOGGER.warning("the report of the checks is not kept, so every run makes its own: %s", error)
    return report


def _read(data: bytes) -> CheckReport | None:
    """The report in a file; None where it is none, or not as it was written."""
    try:
        stored = _Sealed.model_validate_json(data)
        report = _REPORT.validate_python(stored.report)
    except ValidationError:
        return None
    return report if stored.seal == json_digest(stored.report) else None


def _without_images(artifacts: Artifacts, settings: CheckSettings, error: NotWritableError) -> CheckReport:
    report = run_checks(artifacts, settings.model_copy(update={"images": False}))
    left_out = Finding(
        "duplicates_not_checked",
        f"duplicate images were not looked for, since the hashes of the images cannot be kept: {error}",
    )
    return replace(report, warnings=(*report.warnings, left_out))
