"""Rows and statistics of captions that come as whole texts: from files, or from a user's own captioner."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from data_catalog.captions.caption_writer import caption_rows, refuse_empty, total_counts
from data_catalog.captions.redaction import redact
from data_catalog.tables.shards import Statistics

CLIP_CONTEXT = 77
"""Tokens that CLIP reads of a text, its start and end included."""

LISTED = 100
"""How many samples or items of a kind are listed; all are counted."""


@dataclass
class CaptionTexts:
    """Writes texts as captions.

    Attributes:
        redact: Whether personal text (licence plates, names) is left out.
    """

    redact: bool
    tokenizer: Any = field(default=None, init=False)

    def write(self, keys: pa.Table, texts: Sequence[str | None]) -> tuple[pa.Table, Statistics]:
        """Rows of a shard and their statistics, for `summarise_texts`.

        Args:
            keys: Columns `sample_index` and `sample_id`.
            texts: The text of each sample; None where there is none.
        """
        captions: list[str] = []
        redactions: Counter[str] = Counter()
        listed: dict[str, list[str]] = {name: [] for name in ("missing", "empty", "too_long", "redacted")}
        for sample_id, text in zip(keys["sample_id"].to_pylist(), texts, strict=True):
            caption = text or ""
            if text is None:
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


def summarise_texts(
    shards: Sequence[Statistics], is_redacted: bool, items: Mapping[str, list[str]] | None = None
) -> Statistics:
    """`CaptionStatistics` of a table whose shards `CaptionTexts` wrote.

    Args:
        shards: What it gave for each.
        is_redacted: Whether personal text was left out.
        items: What else is counted and listed, by name.

    Raises:
        CatalogError: If all captions are empty.
    """
    names = ("missing", "empty", "too_long", *(("redacted",) if is_redacted else ()))
    found = {name: [id_ for shard in shards for id_ in shard["listed"][name]] for name in names}
    found |= items or {}
    total, captioned = (sum(shard[name] for shard in shards) for name in ("samples", "captioned"))
    refuse_empty(total, total - captioned)
    return {
        "captioned": captioned / total if total else None,
        **{name: len(items) for name, items in found.items()},
        **({"redactions": total_counts(shards, "redactions")} if is_redacted else {}),
        "listed": {name: items[:LISTED] for name, items in found.items() if items},
    }
