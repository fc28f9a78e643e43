"""The `captions` table from captions that exist already; see `data_catalog.captions.caption_files`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pyarrow as pa

from data_catalog.captions.caption_files import (
    Choice,
    find_caption_files,
    read_caption_files,
    read_listed_captions,
)
from data_catalog.captions.caption_texts import CaptionTexts, summarise_texts
from data_catalog.captions.caption_writer import ShardSpec, redaction_settings, shard_specs
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.samples.manifest_again import read_manifest_again
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table

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
        folder: Where the files lie, or a manifest with captions. None looks where the data set's layout keeps
            them, below the folder that was ingested, or in the manifest that was.
        settings: Which captions to take.
        progress: Called as shards complete.

    Returns:
        The table; a sample without a caption has "". `statistics` are `CaptionStatistics`.

    Raises:
        CatalogError: If a file is missing, is not UTF-8 or JSON of that form, has two texts for an item, or
            an item that could mean two samples; names file and entry. If no item names a sample.
    """
    settings = settings or CaptionFileSettings()
    ids = samples.read(["sample_id"])["sample_id"].to_pylist()
    listing = read_manifest_again(samples, folder, "--captions")
    if listing is not None:
        paths = [Path(folder or samples.manifest.created["source"])]
        read = read_listed_captions(listing, ids, settings.choose)
    else:
        files = find_caption_files(samples, folder, settings.choose)
        paths = [path for path, _, _ in files]
        read = read_caption_files(files, ids)
    if not read.captions:
        raise CatalogError(
            f"captions {', '.join(map(str, paths))}: none of {len(read.absent)} items "
            f"names a sample of data set {samples.manifest.dataset!r} (first: "
            f"{', '.join(read.absent[:_NAMED]) or 'there is none'}); expected file names such as "
            f"{PurePosixPath(ids[0]).name}.jpg, in the file of their split, or in a manifest a column caption"
        )

    def summarise(shards: list[Statistics]) -> Statistics:
        items = {"absent": read.absent, "duplicates": read.duplicates}
        return summarise_texts(shards, settings.redact, items)

    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.CAPTIONS,
        settings=settings.model_dump(exclude={"redact"}) | redaction_settings(settings.redact),
        inputs={"samples": samples.digest, "captions": read.digest},
        specs=shard_specs(samples, read.captions),
        maker=_ImportedCaptionsMaker(samples, CaptionTexts(settings.redact)),
        summarise=summarise,
        created={"captions": sorted({str(path.parent) for path in paths})},
        progress=progress,
    )


@dataclass
class _ImportedCaptionsMaker(ShardMaker[ShardSpec]):
    is_light = True

    samples: Table
    texts: CaptionTexts

    def make(self, spec: ShardSpec) -> tuple[pa.Table, Statistics]:
        keys = self.samples.read_shard(spec["shard"], ["sample_index", "sample_id"])
        given = [spec["given"].get(sample_id) for sample_id in keys["sample_id"].to_pylist()]
        texts = [None if found is None else join_captions(list(found.values())) for found in given]
        return self.texts.write(keys, texts)


def join_captions(captions: Sequence[str]) -> str:
    """One text of several captions: each once, one after another, each closed by a full stop."""
    distinct = list(dict.fromkeys(caption for caption in captions if caption))
    if len(distinct) < 2:
        return "".join(distinct)
    return " ".join(
        caption if caption.endswith((".", "!", "?", "。")) else f"{caption}." for caption in distinct
    )
