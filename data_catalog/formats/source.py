"""What every format makes of a source folder: samples to ingest, and files that are none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stmi.modality import Modality

SPLITS = ("train", "val", "test")
"""Parts of a data set. Identities of different parts are disjoint."""


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
            is missing is absent.
    """

    sample_id: str
    split: str
    identity: int
    camera_id: int
    scene_id: int
    is_query: bool
    is_gallery: bool
    files: Mapping[Modality, str]


@dataclass(frozen=True)
class Rejected:
    """A file (path below the source folder) that is left out, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What was found below `root`: samples sorted by id, and the files whose names say nothing."""

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
    """

    name: str
    split_folders: Mapping[str, str]
    list_samples: Callable[[Path], Listing]
