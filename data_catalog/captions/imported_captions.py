"""The `captions` table from captions that exist already; see `data_catalog.captions.caption_files`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa

from data_catalog.captions.caption_files import Choice, ReadCaptions, find_caption_files, read_caption_files
from data_catalog.captions.caption_writer import (
    ShardSpec,
    caption_rows,
    redaction_settings,
    shard_specs,
    total_counts,
)
from data_catalog.captions.redaction import redact
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table

CLIP_CONTEXT = 77
"""Tokens that CLIP reads of a text, its start and end included."""

LISTED = 100
"""How many samples or items of a kind are listed; all are counted."""

_NAMED = 5


class CaptionFileSettings(Record):
    """What is taken from caption files."""

    captioner: Literal["files"] = "files"
    choose: Choice | None = None
    """Which modality's caption, or all three joined, if there is a file for each modality; None if there is
    one file for all."""
    redact: bool = False
    """Whether personal text (licence plates, names) is left out."""


def import_captions(
    samples: Table,
    folder: str | Path | None = None,
    settings: CaptionFileSettings | None = None,
    progress: Progress = no_progress,
) -> Table:
    """The `captions` table of caption files.

    Args:
        samples: What the captions are of.
        folder: Where the files lie. None looks where the data set's layout keeps them, below the folder that
            was ingested.
        settings: Which captions to take.
        progress: Called as shards complete.

    Returns:
        The table; a sample without a caption has "". `statistics` are `CaptionStatistics`.

    Raises:
        CatalogError: If a file is missing, is not UTF-8 or JSON of that form, has two texts for an item, or
            an item that could mean two samples; names file and entry. If no item names a sample.
    """
    settings = settings or CaptionFileSettings()
    files = find_caption_files(samples, folder, settings.choose)
    ids = samples.read(["sample_id"])["sample_id"].to_pylist()
    read = read_caption_files(files, ids)
    if not read.captions:
        raise CatalogError(
            f"captions {', '.join(str(path) for path, _, _ in files)}: none of {len(read.absent)} items "
            f"names a sample of data set {samples.manifest.dataset!r} (first: "
            f"{', '.join(read.absent[:_NAMED]) or 'there is none'}); expected file names such as "
            f"{PurePosixPath(ids[0]).name}.jpg, in the file of their split"
        )

    def summarise(shards: list[Statistics]) -> Statistics:
        return _summarise(shards, read, settings.redact)

    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.CAPTIONS,
        settings=settings.model_dump(exclude={"redact"}) | redaction_settings(settings.redact),
        inputs={"samples": samples.digest, "captions": read.digest},
        specs=shard_specs(samples, read.captions),
        maker=_ImportedCaptionsMaker(samples, settings.redact),
        summarise=summarise,
        created={"captions": sorted({str(path.parent) for path, _, _ in files})},
        progress=progress,
    )


@dataclass
class _ImportedCaptionsMaker(ShardMaker[ShardSpec]):
    is_light = True

    samples: Table
    redact: bool
    tokenizer: Any = field(default=None, init=False)

    def make(self, spec: ShardSpec) -> tuple[pa.Table, Statistics]:
        keys = self.samples.read_shard(spec["shard"], ["sample_index", "sample_id"])
        captions: list[str] = []
        redactions: Counter[str] = Counter()
        listed: dict[str, list[str]] = {name: [] for name in ("missing", "empty", "too_long", "redacted")}
        for sample_id in keys["sample_id"].to_pylist():
            found = spec["given"].get(sample_id)
            caption = "" if found is None else join_captions(list(found.values()))
            if found is None:
                listed["missing"].append(sample_id)
            elif not caption:
                listed["empty"].append(sample_id)
            if self.redact and caption:
                redacted = redact(caption)
                caption = redacted.text
                redactions.update(redacted.counts)
                if redacted.counts:
                    listed["redacted"].append(sample_id)
            if self._is_too_long(caption):
                listed["too_long"].append(sample_id)
            captions.append(caption)
        return caption_rows(keys, captions, [[] for _ in captions]), {
            "samples": len(captions),
            "captioned": len(captions) - captions.count(""),
            "redactions": dict(redactions),
            "listed": listed,
        }

    def _is_too_long(self, caption: str) -> bool:
        words = CLIP_CONTEXT - 2
        # A token is a byte at least, and the tokenizer takes seconds to import.
        if len(caption.encode()) <= words:
            return False
        if self.tokenizer is None:
            from open_clip.tokenizer import SimpleTokenizer  # noqa: PLC0415

            self.tokenizer = SimpleTokenizer()
        return len(self.tokenizer.encode(caption)) > words


def join_captions(captions: Sequence[str]) -> str:
    """One text of several captions: each once, one after another, each closed by a full stop."""
    distinct = list(dict.fromkeys(caption for caption in captions if caption))
    if len(distinct) < 2:
        return "".join(distinct)
    return " ".join(
        caption if caption.endswith((".", "!", "?", "。")) else f"{caption}." for caption in distinct
    )


def _summarise(shards: Sequence[Statistics], read: ReadCaptions, is_redacted: bool) -> Statistics:
    names = ("missing", "empty", "too_long", *(("redacted",) if is_redacted else ()))
    found = {name: [id_ for shard in shards for id_ in shard["listed"][name]] for name in names}
    found |= {"absent": read.absent, "duplicates": read.duplicates}
    total = sum(shard["samples"] for shard in shards)
    return {
        "captioned": sum(shard["captioned"] for shard in shards) / total if total else None,
        **{name: len(items) for name, items in found.items()},
        **({"redactions": total_counts(shards, "redactions")} if is_redacted else {}),
        "listed": {name: items[:LISTED] for name, items in found.items() if items},
    }
