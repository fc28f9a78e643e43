"""Makes the `captions` table of samples: one sentence per sample, from predicted attributes.

The paper's confidence-aware filling: every modality alone knows little (a face at night, a colour in
infrared), so for each attribute the most confident source is believed, and a template writes the sentence.
Here the predictions are read from files; `data_catalog.captions.llm.captioner` asks a model for them, and
`data_catalog.captions.imported_captions` imports captions that exist already.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from data_catalog.captions.caption_writer import (
    CaptionWriter,
    ShardSpec,
    redaction_settings,
    shard_specs,
    summarise_captions,
)
from data_catalog.captions.predicted_attributes import AttributePrediction, fill, load_predictions
from data_catalog.cards import load_card
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.samples.held_out import splits_on_disk
from data_catalog.samples.layout import layout_of
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table

TEMPLATE_VERSION = 1
"""Raised when the templates' words change, so that captions are written again."""


class CaptionSettings(Record):
    """How captions are made from predicted attributes in files."""

    captioner: Literal["readings"] = "readings"
    card: str = "synthetic_person"
    """Card whose attributes may be predicted and whose template writes the sentence."""
    redact: bool = False
    """Whether values that hold personal text (a licence plate) are left out."""


def make_captions(
    samples: Table,
    predictions: str | Path,
    settings: CaptionSettings | None = None,
    progress: Progress = no_progress,
) -> Table:
    """The `captions` table of a samples table.

    Args:
        samples: What to caption.
        predictions: Folder of predicted attributes, see `data_catalog.captions.predicted_attributes`.
        settings: Card and redaction.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` are `CaptionStatistics`, with `unused`.

    Raises:
        CatalogError: If a file of predictions is missing or malformed; names file and line.
    """
    settings = settings or CaptionSettings()
    card = load_card(settings.card)
    source_format = layout_of(samples)
    files = load_predictions(
        Path(predictions), source_format.split_folders, splits_on_disk(samples), card.attributes
    )
    specs = shard_specs(samples, files.samples)
    unused = len(files.samples.keys() - set(samples.read(["sample_id"])["sample_id"].to_pylist()))
    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.CAPTIONS,
        settings=settings.model_dump(exclude={"redact"})
        | {"template": TEMPLATE_VERSION}
        | redaction_settings(settings.redact),
        inputs={"samples": samples.digest, "readings": files.digest},
        specs=specs,
        maker=_CaptionsMaker(samples, CaptionWriter(tuple(card.attributes), card.kind, settings.redact)),
        summarise=lambda shards: summarise_captions(shards, settings.redact) | {"unused": unused},
        progress=progress,
    )


@dataclass(frozen=True)
class _CaptionsMaker(ShardMaker[ShardSpec]):
    is_light = True

    samples: Table
    writer: CaptionWriter

    def make(self, spec: ShardSpec) -> tuple[pa.Table, Statistics]:
        keys = self.samples.read_shard(spec["shard"], ["sample_index", "sample_id"])
        predictions = [
            {
                source: {name: AttributePrediction(**values) for name, values in found.items()}
                for source, found in spec["given"].get(sample_id, {}).items()
            }
            for sample_id in keys["sample_id"].to_pylist()
        ]
        rows, statistics = self.writer.write(keys, predictions, list(map(fill, predictions)))
        # A sample whose line has no prediction is not missing.
        return rows, statistics | {"missing": keys.num_rows - len(spec["given"])}
