"""Samples to the `captions` table: one sentence per sample, from attribute readings.

The paper's confidence-aware filling: every modality alone knows little (a face at night, a colour in
infrared), so for each attribute the most confident source is believed, and a template writes the sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from data_catalog.building import Progress, ShardMaker, build_table
from data_catalog.cards import load_card
from data_catalog.formats import FORMATS
from data_catalog.readings import SOURCES, Reading, fill, load_readings
from data_catalog.schemas import CAPTIONS_SCHEMA, TableKind
from data_catalog.sentences import TEMPLATES, write_caption
from data_catalog.tables import Table

TEMPLATE_VERSION = 1
"""Raised when the templates' words change, so that captions are written anew."""


class CaptionSettings(BaseModel):
    """How captions are made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    captioner: Literal["readings"] = "readings"
    card: str = "synthetic_person"
    """Card whose attributes may be read and whose template writes the sentence."""


def make_captions(
    samples: Table,
    readings: str | Path,
    settings: CaptionSettings | None = None,
    progress: Progress | None = None,
) -> Table:
    """The `captions` table of a samples table.

    Args:
        samples: What to caption.
        readings: Folder of attribute readings, see `data_catalog.readings`.
        settings: Captioner and card.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` holds `unknown` (share of the card's attributes that are not known from each
        source alone, and after filling as `filled`), `missing` (samples without readings), `empty` (empty
        captions) and `unused` (readings without a sample).

    Raises:
        CatalogError: If a readings file is missing or malformed; names file and line.
    """
    settings = settings or CaptionSettings()
    card = load_card(settings.card)
    source_format = FORMATS[samples.manifest.settings["format"]]
    folder = load_readings(
        Path(readings), source_format.split_folders, samples.statistics["splits"], card.attributes
    )
    work: list[dict[str, Any]] = []
    used = 0
    for number in range(len(samples.manifest.shards)):
        ids = samples.read_shard(number, ["sample_id"])["sample_id"].to_pylist()
        of_shard = {sample_id: folder.samples[sample_id] for sample_id in ids if sample_id in folder.samples}
        used += len(of_shard)
        work.append({"shard": number, "readings": of_shard})

    def summarise(shards: list[dict[str, Any]]) -> dict[str, Any]:
        total = sum(shard["samples"] for shard in shards) * len(card.attributes)
        return {
            "unknown": {
                source: sum(shard["unknown"][source] for shard in shards) / total if total else None
                for source in (*SOURCES, "filled")
            },
            "missing": sum(shard["missing"] for shard in shards),
            "empty": sum(shard["empty"] for shard in shards),
            "unused": len(folder.samples) - used,
        }

    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.CAPTIONS,
        settings=settings.model_dump() | {"template": TEMPLATE_VERSION},
        inputs={"samples": samples.digest, "readings": folder.digest},
        work=work,
        maker=_CaptionsMaker(samples, tuple(card.attributes), card.kind),
        summarise=summarise,
        progress=progress,
    )


@dataclass(frozen=True)
class _CaptionsMaker(ShardMaker):
    samples: Table
    attributes: tuple[str, ...]
    template: str

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        keys = self.samples.read_shard(work["shard"], ["sample_index", "sample_id"])
        unknown = dict.fromkeys((*SOURCES, "filled"), 0)
        captions: list[str] = []
        attributes: list[list[dict[str, Any]]] = []
        for sample_id in keys["sample_id"].to_pylist():
            readings = {
                source: {name: Reading(**reading) for name, reading in found.items()}
                for source, found in work["readings"].get(sample_id, {}).items()
            }
            filled = fill(readings)
            for source in SOURCES:
                unknown[source] += len(self.attributes) - sum(
                    reading.known for reading in readings.get(source, {}).values()
                )
            unknown["filled"] += len(self.attributes) - len(filled)
            captions.append(
                write_caption({name: known.value for name, known in filled.items()}, TEMPLATES[self.template])
            )
            attributes.append(
                [{"name": name, **vars(filled[name])} for name in self.attributes if name in filled]
            )
        rows = pa.table(
            [keys["sample_index"], keys["sample_id"], captions, attributes], schema=CAPTIONS_SCHEMA
        )
        return rows, {
            "samples": keys.num_rows,
            "unknown": unknown,
            "missing": keys.num_rows - len(work["readings"]),
            "empty": captions.count(""),
        }
