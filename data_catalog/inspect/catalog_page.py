"""A web page of a data set: thousands of samples with mask and caption, to be filtered and judged.

It is one file that loads nothing. A browser keeps the images in memory and draws those that are scrolled to.
"""

import base64
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from data_catalog.checks.data_checks import CheckSettings
from data_catalog.checks.findings import CheckReport
from data_catalog.checks.newest_tables import NewestTables
from data_catalog.checks.stored_reports import load_or_run_checks
from data_catalog.inspect.contact_sheet import SampleChoice, choose_samples, read_samples
from data_catalog.inspect.contact_sheet_drawing import outlined_images
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.samples.images import Mask, Pixels, decode_mask
from data_catalog.storage.filesystems import absolute, open_root, write_atomically
from data_catalog.tables.table import Table

LONG_SIDE = 160
"""Longer side of an image on the page, pixels."""
_QUALITY = 70
_CARD_WIDTH = 260


class CatalogPage(Record):
    """A page that was written."""

    dataset: str
    html: str
    """The file."""
    bytes: int
    """Its size."""
    shown: int
    """Samples on it."""
    samples: int
    """Samples of the data set."""
    quarantined: int
    """Files that ingest left out, all listed on it."""
    warnings: dict[str, int]
    """Check to the number of shown samples that it names."""
    masks: str | None
    """Key of the masks that are shown."""
    captions: str | None
    """Key of the captions that are shown."""


def write_page(
    tables: NewestTables, out: str | Path, choice: SampleChoice, progress: Progress = no_progress
) -> CatalogPage:
    """Write the page of a data set.

    The data is checked as before a run, and the samples that an error or a warning names can be filtered.

    Args:
        tables: Samples, and the masks and captions that are shown where there are any.
        out: The file, path or URI.
        choice: Which samples, if there are more than fit a page.
        progress: Called with (samples done, samples in all).

    Raises:
        CatalogError: The choice selects no sample or names a missing one, or the file cannot be written.
    """
    samples = tables.samples
    rows = choose_samples(samples, tables.masks, choice)
    report = load_or_run_checks(tables, CheckSettings())
    warned = _checks_by_sample(report)
    entries: dict[int, dict[str, Any]] = {}
    for row, values, triplet in read_samples(samples, tables.masks, tables.captions, rows):
        entries[row] = _entry(values, triplet, warned.get(values["sample_id"], []))
        progress(len(entries), len(rows))
    shown = [entries[int(row)] for row in rows]
    quarantined = samples.statistics["quarantined"]
    title = f"{samples.manifest.dataset}: {len(shown)} of {len(samples)} samples"
    checks = sorted({check for entry in shown for check in entry["warnings"]})
    page = _render(
        title=title,
        width=_CARD_WIDTH,
        splits=list(dict.fromkeys(entry["split"] for entry in shown)),
        cameras=sorted({entry["camera"] for entry in shown}, key=lambda camera: (len(camera), camera)),
        checks=checks,
        data=_as_script({"samples": shown, "quarantined": quarantined}),
    ).encode()
    filesystem, path = open_root(out)
    write_atomically(filesystem, path, page)
    return CatalogPage(
        dataset=samples.manifest.dataset,
        html=absolute(out),
        bytes=len(page),
        shown=len(shown),
        samples=len(samples),
        quarantined=len(quarantined),
        warnings={check: sum(check in entry["warnings"] for entry in shown) for check in checks},
        masks=_key(tables.masks),
        captions=_key(tables.captions),
    )


def _key(table: Table | None) -> str | None:
    return None if table is None else table.manifest.key


def _checks_by_sample(report: CheckReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in (*report.errors, *report.warnings):
        for sample_id in finding.rows:
            found.setdefault(sample_id, []).append(finding.check)
    return found


def _entry(values: Mapping[str, Any], triplet: Pixels, warnings: list[str]) -> dict[str, Any]:
    """What the page has of a sample."""
    mask = decode_mask(values["mask"]) if "mask" in values else None
    entry = {
        "id": values["sample_id"],
        "split": values["split"],
        "identity": values["identity"],
        "camera": values["camera"],
        "scene": values["scene_id"],
        "warnings": sorted(set(warnings)),
        "image": _thumbnail(triplet, mask),
    }
    if mask is not None:
        entry |= {
            "score": round(values["score"], 4),
            "source": values["source"],
            "foreground": round(float(mask.mean()), 4),
        }
    return entry | ({"caption": values["caption"]} if "caption" in values else {})


def _thumbnail(triplet: Pixels, mask: Mask | None) -> str:
    """The three modalities side by side with the outline of the mask, a WebP file in base64."""
    images = outlined_images(triplet, mask, LONG_SIDE)
    height, width = images[0].shape[:2]
    strip = Image.new("RGB", (3 * width + 4, height))
    for number, image in enumerate(images):
        strip.paste(Image.fromarray(image), (number * (width + 2), 0))
    sink = io.BytesIO()
    strip.save(sink, format="WEBP", quality=_QUALITY)
    return base64.b64encode(sink.getvalue()).decode()


def _as_script(data: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element: a caption cannot end the element."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _render(**parts: Any) -> str:
    # Other commands, and help, do without.
    from jinja2 import Environment  # noqa: PLC0415

    text = files(__package__).joinpath("catalog_page.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(text).render(**parts)
