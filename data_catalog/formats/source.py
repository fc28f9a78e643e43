"""What every format makes of a source folder: samples to ingest, and files that are none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stmi.modality import MODALITIES, Modality

SPLITS = ("train", "val", "test")
"""Parts of a data set. Identities of different parts are disjoint."""

SIDE_BY_SIDE = "SIDE_BY_SIDE"
"""Key of a file that holds the images of all modalities, from left to right in the order of MODALITIES."""

MODALITY_FOLDERS = {Modality.RGB: "RGB", Modality.NIR: "NI", Modality.TIR: "TI"}
"""What the published data sets of people, and captions of every data set, call the modalities."""


@dataclass(frozen=True)
class SourceSample:
    """One image triplet of a source folder.

    Attributes:
        sample_id: Split and name, unique in the data set: `test/000028_cam1_0_02`.
        split: One of SPLITS.
        identity: Identity as the file name has it.
        camera_id: Camera, counted from 0.
        scene_id: Scene, -1 where the data set has none.
        is_query: Whether retrieval is measured with it as query.
        is_gallery: Whether it can be retrieved.
        files: Path of each modality's image below the source folder, with forward slashes. A modality that
            is missing is absent. Where one file holds all of them, its path under SIDE_BY_SIDE alone.
        query_files: The same of the copies among the queries, where the sample is in the gallery as well;
            empty where it has none.
    """

    sample_id: str
    split: str
    identity: int
    camera_id: int
    scene_id: int
    is_query: bool
    is_gallery: bool
    files: Mapping[str, str]
    query_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A file (path below the source folder) that is left out, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What was found below `root`: samples sorted by id, and the files whose names rule them out."""

    root: Path
    samples: tuple[SourceSample, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class SourceFormat:
    """A layout on disk.

    Attributes:
        name: What it is asked for by.
        split_folders: Split to the folder that holds it, in the order in which splits are shown.
        list_samples: Lists a source folder; raises CatalogError where the layout is not met.
        masks: Where the mask of a sample lies below the root of a listing: a pattern of `folder` (of the
            split), `identity` (as the name has it) and `name` (of the sample).
        captions: Where the captions of a split lie below the root: a pattern of `split` and `modality`.
        query_folders: Split to the folder of its queries, where they have one of their own.
    """

    name: str
    split_folders: Mapping[str, str]
    list_samples: Callable[[Path], Listing]
    masks: str
    captions: str
    query_folders: Mapping[str, str] = field(default_factory=dict)

    def mask_files(self, sample_id: str) -> tuple[str, ...]:
        """Paths below the root at which the mask of a sample may lie, the published one first.

        A query that is not in the gallery has its mask with the queries, and some people name the folders
        by split.
        """
        split, _, name = sample_id.partition("/")
        folders = [self.split_folders[split], self.query_folders.get(split), split]
        identity = name.partition("_")[0]
        paths = [
            self.masks.format(folder=folder, identity=identity, name=name) for folder in folders if folder
        ]
        return tuple(dict.fromkeys(paths))

    def caption_files(self, split: str) -> dict[str, str]:
        """Paths below the root at which the captions of a split may lie.

        Under "" stands the file with one caption per sample, under the name of each modality (`RGB`, `NIR`,
        `TIR`) the file with the captions of its images.
        """
        files = {"": self.captions.format(split=split, modality="")}
        for modality in MODALITIES:
            files[modality.value] = self.captions.format(
                split=split, modality=f"_{MODALITY_FOLDERS[modality]}"
            )
        return files
