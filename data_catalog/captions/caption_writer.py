"""Rows and statistics of a captions table, wherever its captions come from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa

from data_catalog.captions.predicted_attributes import SOURCES, FilledAttribute, Predictions
from data_catalog.captions.redaction import REDACTION_VERSION, redact
from data_catalog.captions.sentences import TEMPLATES, write_caption
from data_catalog.errors import CatalogError
from data_catalog.formats import QUERY_SUFFIX
from data_catalog.tables.schemas import CAPTIONS_SCHEMA
from data_catalog.tables.shards import Statistics
from data_catalog.tables.table import Table


class ShardSpec(TypedDict):
    """A shard, and what files say about its samples, by sample id."""

    shard: int
    given: Mapping[str, Any]


def shard_specs(samples: Table, given: Mapping[str, Any]) -> list[ShardSpec]:
    """The shards of samples, each with what files say about its samples.

    Args:
        samples: The samples.
        given: What files say about each sample, by sample id; ids of other samples are ignored. What they say
            about a gallery sample also holds for its query, where that is a sample of its own.
    """
    specs: list[ShardSpec] = []
    for number in range(len(samples.manifest.shards)):
        ids = samples.read_shard(number, ["sample_id"])["sample_id"].to_pylist()
        named = {id_: id_ if id_ in given else id_.removesuffix(QUERY_SUFFIX) for id_ in ids}
        specs.append(
            {"shard": number, "given": {id_: given[name] for id_, name in named.items() if name in given}}
        )
    return specs


def redaction_settings(is_asked_for: bool) -> dict[str, Any]:
    """What a table's settings say about redaction: nothing if there is none."""
    return {"redact": REDACTION_VERSION} if is_asked_for else {}


def caption_rows(
    keys: pa.Table, captions: Sequence[str], attributes: Iterable[Sequence[Mapping[str, Any]]]
) -> pa.Table:
    """Rows of a captions table.

    Args:
        keys: Columns `sample_index` and `sample_id`.
        captions: The caption of each sample.
        attributes: What is known of each sample.
    """
    columns = [keys["sample_index"], keys["sample_id"], captions, list(attributes)]
    return pa.table(columns, schema=CAPTIONS_SCHEMA)


@dataclass(frozen=True)
class CaptionWriter:
    """Writes captions from what is known of samples.

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
    ) -> tuple[pa.Table, Statistics]:
        """Rows of a shard and their statistics.

        Args:
            keys: Columns `sample_index` and `sample_id`.
            predictions: The predictions of each sample.
            filled: What is known of each sample.
        """
        unknown = dict.fromkeys((*SOURCES, "filled"), 0)
        redactions: Counter[str] = Counter()
        captions: list[str] = []
        attributes: list[list[dict[str, Any]]] = []
        for predicted, known in zip(predictions, filled, strict=True):
            written = self._without_personal_text(known, redactions) if self.redact else known
            for source in SOURCES:
                unknown[source] += len(self.attributes) - sum(
                    found.is_known for found in predicted.get(source, {}).values()
                )
            unknown["filled"] += len(self.attributes) - len(written)
            captions.append(
                write_caption(
                    {name: value.value for name, value in written.items()}, TEMPLATES[self.template]
                )
            )
            attributes.append(
                [{"name": name, **vars(written[name])} for name in self.attributes if name in written]
            )
        return caption_rows(keys, captions, attributes), {
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
        counts = {name: redact(value.value).counts for name, value in known.items()}
        for found in counts.values():
            redactions.update(found)
        return {name: value for name, value in known.items() if not counts[name]}


def refuse_empty(samples: int, empty: int) -> None:
    """Make sure that captions say anything.

    Raises:
        CatalogError: If all are empty.
    """
    if samples and empty == samples:
        raise CatalogError(
            f"all {samples} captions are empty, so no table is made of them; see to what they are made from "
            "and run the same command again, or do without captions (`view --no-text`)"
        )


def summarise_captions(shards: Sequence[Statistics], is_redacted: bool) -> Statistics:
    """`CaptionStatistics` of a table whose shards a `CaptionWriter` wrote.

    Raises:
        CatalogError: If all captions are empty.
    """
    refuse_empty(sum(shard["samples"] for shard in shards), sum(shard["empty"] for shard in shards))
    total = sum(shard["samples"] * shard["attributes"] for shard in shards)
    unknown = total_counts(shards, "unknown")
    return {
        "unknown": {source: unknown[source] / total if total else None for source in (*SOURCES, "filled")},
        "missing": sum(shard["missing"] for shard in shards),
        "empty": sum(shard["empty"] for shard in shards),
        **({"redactions": total_counts(shards, "redactions")} if is_redacted else {}),
    }


def total_counts(shards: Sequence[Statistics], name: str) -> dict[str, int]:
    """Counts that every shard has under a name, over all of them, sorted."""
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(shard[name])
    return dict(sorted(total.items()))
