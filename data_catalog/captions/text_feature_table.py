"""Makes the `text_features` table of captions: each is encoded once with the frozen CLIP text tower.

The text tower is not trained, so its output for a caption never changes; training reads it from here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind, text_features_schema
from data_catalog.tables.shards import ShardMaker, Statistics
from data_catalog.tables.table import Table
from stmi.clip.clip_files import clip_folder, find_clip
from stmi.config import LARGEST_COUNT

if TYPE_CHECKING:
    from stmi.clip.loading import LoadedClip

LIGHT_CAPTIONS = 512
"""Number of captions that are encoded in the time that an actor takes to load its tower."""


class TextFeatureSettings(Record):
    """How captions are encoded."""

    batch_size: int = Field(256, ge=1, le=LARGEST_COUNT)


class TextFeatureStatistics(Record):
    """Statistics of a `text_features` table."""

    text_dim: int
    """Width of a text feature."""
    clip: str
    """Name of the CLIP."""
    distinct: int
    """Captions that differ from each other."""


def load_text_tower(source: str) -> "LoadedClip":
    """The CLIP of `stmi.clip.loading.load_clip`; an actor loads its own.

    Raises:
        CatalogError: If there is none.
    """
    from stmi.clip.loading import load_clip  # noqa: PLC0415 - open_clip takes seconds to import
    from stmi.errors import ClipFileError  # noqa: PLC0415

    try:
        return load_clip(source)
    except ClipFileError as error:
        # Its message names the source.
        raise CatalogError(str(error)) from error
    except OSError as error:
        raise CatalogError(f"clip source {source!r} cannot be loaded: {error}") from error


def make_text_features(
    captions: Table,
    clip: str | Path,
    settings: TextFeatureSettings | None = None,
    progress: Progress = no_progress,
    load: Callable[[str], "LoadedClip"] = load_text_tower,
) -> Table:
    """The `text_features` table of a captions table.

    Args:
        captions: What to encode. An empty caption is encoded like any other text.
        clip: Folder of a CLIP, the file of weights in it, or an open_clip model name.
        settings: Batch size.
        progress: Called as shards complete.
        load: Loads the text tower; must be importable by the actors.

    Returns:
        The table; `statistics` are `TextFeatureStatistics`.

    Raises:
        CatalogError: If the CLIP cannot be loaded.
    """
    settings = settings or TextFeatureSettings()
    source = find_clip(str(clip))
    tower = load(source)
    text_dim = tower.embed_dim

    def summarise(shards: list[Statistics]) -> Statistics:
        name = source if clip_folder(source) is None else Path(source).name
        distinct = pc.count_distinct(captions.read(["caption"])["caption"]).as_py()
        return TextFeatureStatistics(text_dim=text_dim, clip=name, distinct=distinct).model_dump()

    return build_table(
        catalog=captions.catalog,
        dataset=captions.manifest.dataset,
        kind=TableKind.TEXT_FEATURES,
        settings=settings.model_dump(),
        inputs={
            "samples": captions.manifest.inputs["samples"],
            "captions": captions.digest,
            "clip": tower.digest,
        },
        specs=range(len(captions.manifest.shards)),
        maker=TextFeaturesMaker(captions, source, settings.batch_size, load),
        summarise=summarise,
        created={"clip": source},
        progress=progress,
    )


@dataclass
class TextFeaturesMaker(ShardMaker[int]):
    """Encodes the captions of a shard, equal ones once."""

    captions: Table
    source: str
    batch_size: int
    load: Callable[[str], "LoadedClip"]
    tower: "LoadedClip | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        # A few are encoded before every actor has loaded its tower.
        self.is_light = len(self.captions) <= LIGHT_CAPTIONS

    def prepare(self) -> None:
        """Load the text tower."""
        self.tower = self.load(self.source)

    def make(self, number: int) -> tuple[pa.Table, Statistics]:
        """Rows of the shard."""
        assert self.tower is not None
        rows = self.captions.read_shard(number, ["sample_index", "sample_id", "caption"])
        captions = rows["caption"].to_pylist()
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        distinct = list(numbers)
        features = np.zeros((len(distinct), self.tower.embed_dim), dtype=np.float32)
        for start in range(0, len(distinct), self.batch_size):
            tokens = self.tower.tokenize(distinct[start : start + self.batch_size])
            features[start : start + self.batch_size] = self.tower.encode_text(tokens).detach().cpu().numpy()
        chosen = features[[numbers[caption] for caption in captions]]
        if not np.isfinite(chosen).all():
            raise CatalogError(
                f"clip {self.source}: text features are not finite; its weights are damaged: restore them"
            )
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(chosen.reshape(-1)), type=text_features_schema(self.tower.embed_dim).field(2).type
        )
        table = pa.table(
            [rows["sample_index"], rows["sample_id"], vectors],
            schema=text_features_schema(self.tower.embed_dim),
        )
        return table, {}
