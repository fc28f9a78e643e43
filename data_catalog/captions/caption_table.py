"""Samples to the `captions` table: one sentence per sample, from predicted attributes.

The paper's confidence-aware filling: every modality alone knows little (a face at night, a colour in
infrared), so for each attribute the most confident source is believed, and a template writes the sentence.
Here the predictions are read from files; `data_catalog.captions.llm.captioner` asks a model for them, and
`data_catalog.captions.imported_captions` takes captions that somebody wrote already.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from data_catalog.captions.predicted_attributes import (
    SOURCES,
    AttributePrediction,
    FilledAttribute,
    Predictions,
    fill,
    load_predictions,
)
from data_catalog.captions.redaction import REDACTION_VERSION, redact
from data_catalog.captions.sentences import TEMPLATES, write_caption
from data_catalog.cards import load_card
from data_catalog.formats import FORMATS
from data_catalog.progress import Progress
from data_catalog.records import Record
from data_catalog.samples.held_out import splits_on_disk
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import CAPTIONS_SCHEMA, TableKind
from data_catalog.tables.shards import ShardMaker
from data_catalog.tables.table import Table

TEMPLATE_VERSION = 1
"""Raised when the templates' words change, so that captions are written anew."""


class CaptionSettings(BaseModel):
    """How captions are made.

    Attributes:
        captioner: Predicted attributes from files (`readings`).
        card: Card whose attributes may be read and whose template writes the sentence.
        redact: Whether values that hold personal text (a licence plate) are left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    captioner: Literal["readings"] = "readings"
    card: str = "synthetic_person"
    redact: bool = False


class CaptionStatistics(Record):
    """Statistics of a `captions` table; None where the captioner does not have it."""

    missing: int
    """Samples about which nothing was given."""
    empty: int
    """Empty captions; of imported ones, items without words."""
    unknown: dict[str, float | None] | None = None
    """Share of the card's attributes that are not known from each source alone, and after filling
    (`filled`)."""
    unused: int | None = None
    """Predictions without a sample."""
    redactions: dict[str, int] | None = None
    """With `redact`, kind of personal text to how many were left out."""


def make_captions(
    samples: Table,
    predictions: str | Path,
    settings: CaptionSettings | None = None,
    progress: Progress | None = None,
) -> Table:
    """The `captions` table of a samples table.

    Args:
        samples: What to caption.
        predictions: Folder of predicted attributes, see `data_catalog.captions.predicted_attributes`.
        settings: Captioner and card.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` are `CaptionStatistics`, with `unused`.

    Raises:
        CatalogError: If a file of predictions is missing or malformed; names file and line.
    """
    settings = settings or CaptionSettings()
    card = load_card(settings.card)
    source_format = FORMATS[samples.manifest.settings["format"]]
    files = load_predictions(
        Path(predictions), source_format.split_folders, splits_on_disk(samples), card.attributes
    )
    work: list[dict[str, Any]] = []
    used = 0
    for number in range(len(samples.manifest.shards)):
        ids = samples.read_shard(number, ["sample_id"])["sample_id"].to_pylist()
        of_shard = {sample_id: files.samples[sample_id] for sample_id in ids if sample_id in files.samples}
        used += len(of_shard)
        work.append({"shard": number, "readings": of_shard})
    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.CAPTIONS,
        settings=settings.model_dump(exclude={"redact"})
        | {"template": TEMPLATE_VERSION}
        | redaction_settings(settings.redact),
        inputs={"samples": samples.digest, "readings": files.digest},
        specs=work,
        maker=_CaptionsMaker(samples, CaptionWriter(tuple(card.attributes), card.kind, settings.redact)),
        summarise=lambda shards: (
            summarise_captions(shards, settings.redact) | {"unused": len(files.samples) - used}
        ),
        progress=progress,
    )


def redaction_settings(is_asked_for: bool) -> dict[str, Any]:
    """What a table's settings say of redaction: nothing where there is none."""
    return {"redact": REDACTION_VERSION} if is_asked_for else {}


@dataclass(frozen=True)
class CaptionWriter:
    """Writes the rows of a captions table from what is known of samples.

    Attributes:
        attributes: Names of the card's attributes, in its order.
        template: Name of the template.
        redact: Whether values that hold personal text are left out.
    """

    attributes: tuple[str, ...]
    template: str
    redact: bool = False

    def write(
        self,
        keys: pa.Table,
        predictions: Sequence[Predictions],
        filled: Sequence[Mapping[str, FilledAttribute]],
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Rows of a shard and what to tell of them.

        Args:
            keys: Columns `sample_index` and `sample_id`.
            predictions: What each sample's sources show.
            filled: What is known of each sample.
        """
        unknown = dict.fromkeys((*SOURCES, "filled"), 0)
        redactions: Counter[str] = Counter()
        captions: list[str] = []
        attributes: list[list[dict[str, Any]]] = []
        for predicted, known in zip(predictions, filled, strict=True):
            told = self._without_personal_text(known, redactions) if self.redact else known
            for source in SOURCES:
                unknown[source] += len(self.attributes) - sum(
                    found.is_known for found in predicted.get(source, {}).values()
                )
            unknown["filled"] += len(self.attributes) - len(told)
            captions.append(
                write_caption({name: value.value for name, value in told.items()}, TEMPLATES[self.template])
            )
            attributes.append(
                [{"name": name, **vars(told[name])} for name in self.attributes if name in told]
            )
        rows = pa.table(
            [keys["sample_index"], keys["sample_id"], captions, attributes], schema=CAPTIONS_SCHEMA
        )
        return rows, {
            "samples": keys.num_rows,
            "attributes": len(self.attributes),
            "unknown": unknown,
            "missing": sum(not predicted for predicted in predictions),
            "empty": captions.count(""),
            "redactions": dict(redactions),
        }

    def _without_personal_text(
        self, known: Mapping[str, FilledAttribute], redactions: Counter[str]
    ) -> dict[str, FilledAttribute]:
        told = {}
        for name, value in known.items():
            found = redact(value.value).counts
            redactions.update(found)
            if not found:
                told[name] = value
        return told


def summarise_captions(shards: Sequence[Mapping[str, Any]], is_redacted: bool) -> dict[str, Any]:
    """Statistics of a table whose shards a `CaptionWriter` wrote."""
    total = sum(shard["samples"] * shard["attributes"] for shard in shards)
    unknown = total_counts(shards, "unknown")
    return {
        "unknown": {
            source: unknown.get(source, 0) / total if total else None for source in (*SOURCES, "filled")
        },
        "missing": sum(shard["missing"] for shard in shards),
        "empty": sum(shard["empty"] for shard in shards),
        **({"redactions": total_counts(shards, "redactions")} if is_redacted else {}),
    }


def total_counts(shards: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    """Counts that every shard has under a name, over all of them, sorted."""
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard[name])
    return dict(sorted(total.items()))


@dataclass(frozen=True)
class _CaptionsMaker(ShardMaker):
    samples: Table
    writer: CaptionWriter

    @property
    def is_light(self) -> bool:
        return True

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        keys = self.samples.read_shard(work["shard"], ["sample_index", "sample_id"])
        predictions = [
            {
                source: {name: AttributePrediction(**values) for name, values in found.items()}
                for source, found in work["readings"].get(sample_id, {}).items()
            }
            for sample_id in keys["sample_id"].to_pylist()
        ]
        rows, statistics = self.writer.write(
            keys, predictions, [fill(predicted) for predicted in predictions]
        )
        # A line may say nothing of its sample, which is then not missing.
        return rows, statistics | {"missing": keys.num_rows - len(work["readings"])}
