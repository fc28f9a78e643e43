"""Reports of the checks, kept in the catalog, so that a thousand runs on the same tables check them once.

`<catalog>/<dataset>/checks/<key>.json` holds a report; the key is over the digests of the tables and over the
settings of the checks.
"""

from pydantic import TypeAdapter, ValidationError

from data_catalog import storage
from data_catalog.artifacts import Artifacts
from data_catalog.building import Progress
from data_catalog.checks import CheckReport, CheckSettings, run_checks
from data_catalog.tables import json_digest

FOLDER = "checks"
CHECKS_VERSION = 2
"""Raised whenever the same data would be reported of otherwise."""

_REPORT = TypeAdapter(CheckReport)


def checked(
    artifacts: Artifacts, settings: CheckSettings | None = None, progress: Progress | None = None
) -> CheckReport:
    """What `run_checks` finds, from the catalog where the same was asked of the same tables before.

    Args:
        artifacts: The tables.
        settings: Where to draw the lines.
        progress: Called as shards are hashed.

    Raises:
        CatalogError: If the report cannot be written.
    """
    settings = settings or CheckSettings()
    asked = {
        "version": CHECKS_VERSION,
        "settings": settings.model_dump(),
        "tables": {name: table.digest for name, table in artifacts.named.items()},
    }
    samples = artifacts.samples
    filesystem, path = storage.open_root(
        storage.join(samples.catalog, samples.manifest.dataset, FOLDER, f"{json_digest(asked)[:16]}.json")
    )
    if storage.exists(filesystem, path):
        try:
            return _REPORT.validate_json(storage.read_buffer(filesystem, path).to_pybytes())
        except ValidationError:
            # Whatever became of the file, it can be made again.
            filesystem.delete_file(path)
    report = run_checks(artifacts, settings, progress)
    storage.write_atomically(filesystem, path, _REPORT.dump_json(report, indent=1) + b"\n")
    return report
