"""What a query is looked for in: the test gallery of a data set, or a folder of images.

A gallery says what stands for its content before anything is embedded, so that an index of it can be found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from data_catalog.tables.digests import json_digest
from data_catalog.tables.table import Table
from data_catalog.views.view_reader import View, open_view
from experiments.evaluating.evaluation_target import embed_here, load_run
from experiments.evaluating.folder_embeddings import embed_folder, none_usable
from experiments.evaluating.image_folder import CAPTION, IMAGES, MASK, ImageFolder
from experiments.evaluating.parquet_files import read_features, view_labels
from stmi.images import Pixels
from stmi.modality import MODALITIES
from stmi.raw_samples import RawSamples
from stmi.stored_run import EpochChoice
from stmi.trained_run import TrainedRun

OWN_FEATURES = ("U", "G", "T")
"""What is kept of a gallery: every other feature is made of these."""
CONTENT = "content"
"""Column of what stands for the content of a sample of a folder."""


@dataclass(frozen=True)
class EmbeddedGallery:
    """Features of a gallery.

    Attributes:
        labels: What is known of its samples, `(samples,)` by column, with `sample_id`.
        features: float32 `(samples, width)` by name, those of `OWN_FEATURES` that the model has.
        embedded: How many samples were embedded now; features of the others were known.
        left_out: Name of each sample that cannot be used, and why.
    """

    labels: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    embedded: int
    left_out: dict[str, str] = field(default_factory=dict)


class Gallery(Protocol):
    """Samples among which one searches."""

    @property
    def name(self) -> str:
        """Name of the data set or the folder."""

    @property
    def location(self) -> str:
        """Where it is; two galleries have two locations."""

    @property
    def digest(self) -> str:
        """What stands for its content."""

    @property
    def lacks(self) -> dict[str, int]:
        """How many samples lack an argument of `stmi.TrainedRun.embed`; without those that none lacks."""

    def __len__(self) -> int:
        """Number of samples."""

    def embed(self, known: Path | None) -> EmbeddedGallery:
        """Embed it.

        Args:
            known: Parquet file of what the same model made of an earlier content of it; None for none.
        """

    def pixels(self, sample_id: str) -> Pixels:
        """The images of a sample at the model's size, uint8 `(modality, channel, height, width)`."""


class DatasetGallery:
    """The gallery of a data set's test view.

    Args:
        location: The run's folder or URI.
        epoch: Whose weights embed it.
        table: The view.
        dataset: Name of the data set; None for the run's own.
        workers: Number of Ray actors that embed it; 0 for this process alone.
    """

    def __init__(
        self, location: str, epoch: EpochChoice, table: Table, dataset: str | None, workers: int
    ) -> None:
        self._run = (location, epoch)
        self._table = table
        self._dataset = dataset
        self._workers = workers
        self.name = table.manifest.dataset
        self.location = f"{table.catalog} {self.name}"
        self.digest = table.digest

    def __len__(self) -> int:
        return int(self._view.is_gallery.sum())

    @property
    def lacks(self) -> dict[str, int]:
        """The images that samples lack; all samples, where its view was made without masks or text."""
        missing = self._view.missing
        counts = [] if missing is None else missing[self._view.is_gallery].sum(axis=0).tolist()
        images = {name: count for name, count in zip(IMAGES, counts, strict=False) if count}
        tables = {MASK: "masks", CAPTION: "text_features"}
        absent = [kind for kind, table in tables.items() if table not in self._table.manifest.inputs]
        return images | dict.fromkeys(absent, len(self))

    @cached_property
    def _view(self) -> View:
        return open_view(self._table)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self._view.sample_id.tolist())}

    def embed(self, known: Path | None) -> EmbeddedGallery:
        """Embed all of it: the content of a view is known as a whole."""
        location, epoch = self._run
        target = load_run(location, self._dataset, self._table.catalog, epoch)
        if self._workers == 0:
            [features] = embed_here(target, self._view, [()])
        else:
            from experiments.evaluating.embedding_actors import embed_on_cluster  # noqa: PLC0415 - imports Ray

            [features] = embed_on_cluster(target, [()], self._workers)
        chosen = self._view.is_gallery
        return EmbeddedGallery(
            {name: values[chosen] for name, values in view_labels(self._view).items()},
            {name: features[name][chosen] for name in OWN_FEATURES if name in features},
            embedded=len(self),
        )

    def pixels(self, sample_id: str) -> Pixels:
        """The images of a row of the view."""
        return self._view.batch([self._row_of[sample_id]]).pixels[0]


class FolderGallery:
    """The samples of a folder of images.

    Args:
        run: The trained run that embeds them.
        folder: The samples.
    """

    def __init__(self, run: TrainedRun, folder: ImageFolder) -> None:
        self._run = run
        self._folder = folder
        self.name = folder.root.resolve().name
        self.location = str(folder.root.resolve())

    def __len__(self) -> int:
        return len(self._folder)

    @cached_property
    def contents(self) -> Sequence[str]:
        """What stands for the content of each sample."""
        return self._folder.contents()

    @property
    def digest(self) -> str:
        """What stands for the names and contents of all samples."""
        return json_digest([self._folder.names, list(self.contents)])

    @property
    def lacks(self) -> dict[str, int]:
        """How many samples have no file of a kind, or no caption."""
        return self._folder.lacks

    def embed(self, known: Path | None) -> EmbeddedGallery:
        """Embed the samples whose content is not known.

        Raises:
            ConfigError: No sample can be used.
        """
        contents = [] if known is None else pq.read_table(known, columns=[CONTENT])[CONTENT].to_pylist()
        row_of = {content: row for row, content in enumerate(contents)}
        new = [row for row, content in enumerate(self.contents) if content not in row_of]
        used, embeddings, left_out = embed_folder(self._run, self._folder, new)
        row_of |= {self.contents[row]: len(contents) + number for number, row in enumerate(used)}
        parts: list[Mapping[str, np.ndarray]]
        parts = [] if known is None else [read_features(known, OWN_FEATURES)]
        parts += [] if embeddings is None else [embeddings.features]
        there = [row for row, content in enumerate(self.contents) if content in row_of]
        if not there:
            raise none_usable(self._folder, left_out)
        order = [row_of[self.contents[row]] for row in there]
        return EmbeddedGallery(
            {
                "sample_id": np.array([self._folder.names[row] for row in there], dtype=np.str_),
                CONTENT: np.array([self.contents[row] for row in there], dtype=np.str_),
            },
            {
                name: np.concatenate([part[name] for part in parts])[order]
                for name in OWN_FEATURES
                if name in parts[0]
            },
            len(used),
            left_out,
        )

    def pixels(self, sample_id: str) -> Pixels:
        """The images of a sample's files."""
        row = self._folder.names.index(sample_id)
        return read_pixels(self._run, self._folder.arguments([row]))


def read_pixels(run: TrainedRun, sample: Mapping[str, Any]) -> Pixels:
    """The images of one sample at a run's size, uint8 `(modality, channel, height, width)`.

    Args:
        run: The trained run.
        sample: Arguments of its `embed`.
    """
    images = {name: sample.get(str(name).lower()) for name in MODALITIES}
    size = run.config.model.image
    return RawSamples.gather(images, None, None, None).read(0, (size.height, size.width))[0]
