"""The `captions` table of a user's own captioner, which sees the three images of a sample and writes a text.

It lives in a Ray Data actor, so a model is loaded once per actor.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from data_catalog.captions.caption_texts import CaptionTexts, summarise_texts
from data_catalog.captions.caption_writer import redaction_settings
from data_catalog.errors import CatalogError
from data_catalog.extensions import ActorSettings
from data_catalog.progress import Progress, no_progress
from data_catalog.samples.images import Pixels, decode_triplets
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table


class Captioner(Protocol):
    """Writes the captions of samples."""

    def caption(self, triplets: Sequence[Pixels]) -> list[str]:
        """One text for each sample, "" where there is nothing to say.

        Args:
            triplets: Images, uint8 `(modality, height, width, channel)` each; RGB, NIR, TIR.

        Raises:
            CatalogError: If the user can correct what is wrong; its message is what they read.
        """


class CaptionerSettings(ActorSettings):
    """Everything that determines a captioner's texts; builds the captioner."""

    @abstractmethod
    def build(self) -> Captioner:
        """The captioner; called in the actor that uses it."""


def make_image_captions(
    samples: Table,
    settings: CaptionerSettings,
    is_redacted: bool = False,
    progress: Progress = no_progress,
) -> Table:
    """The `captions` table of a samples table, by a captioner.

    Args:
        samples: What to caption.
        settings: The captioner.
        is_redacted: Whether personal text (licence plates, names) is left out.
        progress: Called as shards complete.

    Returns:
        The table; `statistics` are `CaptionStatistics`.

    Raises:
        CatalogError: If the captioner cannot be built, fails, or gives other things than a text a sample.
    """
    return build_table(
        catalog=samples.catalog,
        dataset=samples.manifest.dataset,
        kind=TableKind.CAPTIONS,
        settings=settings.stored("captioner") | redaction_settings(is_redacted),
        inputs={"samples": samples.digest},
        specs=range(len(samples.manifest.shards)),
        maker=_CaptionerMaker(samples, settings, CaptionTexts(is_redacted)),
        summarise=lambda shards: summarise_texts(shards, is_redacted),
        progress=progress,
    )


@dataclass
class _CaptionerMaker(ShardMaker[int]):
    samples: Table
    settings: CaptionerSettings
    texts: CaptionTexts
    captioner: Captioner | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.gpus_per_actor = self.settings.gpus_per_actor
        self.cpus_per_actor = self.settings.cpus_per_actor

    def prepare(self) -> None:
        self.captioner = self.settings.build()

    def is_final(self, statistics: Mapping[str, Any]) -> bool:
        # A table of empty captions is refused, and the captioner may be corrected then.
        return bool(statistics["captioned"])

    def make(self, number: int) -> tuple[pa.Table, Statistics]:
        assert self.captioner is not None
        samples = self.samples.read_shard(number)
        captions = self.captioner.caption(decode_triplets(samples))
        name = self.settings.stored("captioner")["captioner"]
        if len(captions) != samples.num_rows:
            raise CatalogError(
                f"captioner {name} gave {len(captions)} texts for {samples.num_rows} samples, expected one "
                "for each; correct it, and raise its version"
            )
        for caption, sample_id in zip(captions, samples["sample_id"].to_pylist(), strict=True):
            if not isinstance(caption, str):
                raise CatalogError(
                    f"captioner {name}, sample {sample_id}: the caption is {caption!r:.80}, expected a str"
                )
        return self.texts.write(samples.select(["sample_index", "sample_id"]), captions)
