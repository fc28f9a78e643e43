"""What every layout lists of a source folder: samples to ingest, and files that are left out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data_catalog.errors import CatalogError
from data_catalog.records import Record
from stmi.modality import MODALITIES, Modality

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
"""Parts of a data set. Identities of different parts are disjoint."""

SIDE_BY_SIDE = "SIDE_BY_SIDE"
"""Key of a file that holds the images of all modalities, from left to right in the order of MODALITIES."""

QUERY_SUFFIX = ".query"
"""Ends the id of a query that is no copy of the gallery's file of its name (`samples.query_copies`)."""

MODALITY_FOLDERS = {Modality.RGB: "RGB", Modality.NIR: "NI", Modality.TIR: "TI"}
"""Names of the modalities in the published data sets of people, and in the captions of every data set."""


@dataclass(frozen=True)
class SourceSample:
    """One image triplet of a source folder.

    Attributes:
        sample_id: Split and name, unique in the data set: `test/000028_cam1_0_02`.
        split: One of SPLITS.
        identity: The identity in the file name.
        camera_id: Camera, counted from 0; -1 if the data set has none.
        scene_id: Scene, -1 if the data set has none.
        is_query: Whether it is a query.
        is_gallery: Whether it is in the gallery.
        files: Path of each modality's image below the root of the listing, with forward slashes, or its URI;
            without those that are missing. If one file holds all of them, only its path under SIDE_BY_SIDE.
        query_files: Paths of the files of the same name among the queries, in the same form, if the sample is
            in the gallery too; copies as a rule.
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


class Rejected(Record):
    """A file that is left out."""

    file: str
    """Path below the source folder."""
    reason: str


@dataclass(frozen=True)
class Listing:
    """What was found below `root`: samples, and the files that are left out.

    Attributes:
        root: A folder.
        samples: Each once.
        rejected: What is left out.
        masks: By sample id the path of its mask below the root, if the source is a manifest.
        captions: By sample id its caption, if the source is a manifest.
    """

    root: Path
    samples: tuple[SourceSample, ...]
    rejected: tuple[Rejected, ...]
    masks: Mapping[str, str] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceFormat:
    """A layout on disk.

    Attributes:
        name: Value of `ingest --format` for a built-in layout; the default name of the data set, and the name
            of its card.
        split_folders: The folder of each split that a data set may have, in the order in which splits are
            listed; masks and captions in files are looked for in folders of these names.
        list_samples: Lists a source folder; raises CatalogError if it has another layout.
        masks: Path of the mask of a sample below the root of a listing: a pattern with `folder` (of the
            split), `identity` (in the name) and `name` (of the sample).
        captions: Path of the captions of a split below the root: a pattern with `split` and `modality`.
        query_folders: The folder of the queries of each split that has one.
        tree: An example of the folders and files, for help and messages; "" for none.
        first_camera: The number in the files of the camera whose `camera_id` is 0, which people are shown.
        any_image: Whether images may be of any type that `samples.any_image` reads, and not only colour JPEG.
        is_manifest: Whether the source is a file that names the files of each sample, its mask and caption,
            and `masks` and `captions` are no patterns but in the listing.
    """

    name: str
    split_folders: Mapping[str, str]
    list_samples: Callable[[Path], Listing]
    masks: str = "mask/{folder}/{name}.npy"
    captions: str = "text/{split}{modality}.json"
    query_folders: Mapping[str, str] = field(default_factory=dict)
    tree: str = ""
    first_camera: int = 0
    any_image: bool = False
    is_manifest: bool = False

    def read(self, source: Path) -> Listing:
        """What `list_samples` finds, sorted by sample id and checked.

        Raises:
            CatalogError: If the folder has another layout, or a sample does not hold what SourceSample says;
                names the sample and the field.
        """
        try:
            listing = self.list_samples(source)
        except CatalogError as error:
            if not self.tree:
                raise
            raise CatalogError(f"{error}\nexpected:\n{self.tree.rstrip()}") from error
        if not isinstance(listing, Listing):
            raise CatalogError(
                f"format {self.name}: list_samples returned {type(listing).__name__}, expected a Listing"
            )
        samples = sorted(listing.samples, key=lambda sample: sample.sample_id)
        if not samples:
            raise CatalogError(f"format {self.name}: source {source} holds no sample; is it another layout?")
        for before, sample in zip([None, *samples], samples, strict=False):
            wrong = self._fault(sample)
            if before is not None and before.sample_id == sample.sample_id:
                wrong = "sample_id is that of another sample too, expected one of its own"
            if wrong:
                raise CatalogError(f"format {self.name}: sample {sample.sample_id!r}: {wrong}")
        return replace(listing, samples=tuple(samples))

    def _fault(self, sample: SourceSample) -> str:
        """What is wrong with a sample, or "" if nothing is."""
        names = {SIDE_BY_SIDE} if SIDE_BY_SIDE in sample.files else set(MODALITIES)
        splits = [split for split in SPLITS if split in self.split_folders]
        if sample.split not in splits:
            return f"split is {sample.split!r}, expected one of split_folders, here {', '.join(splits)}"
        if not sample.sample_id.startswith(f"{sample.split}/"):
            return f"sample_id must begin with the split, expected {sample.split}/NAME"
        if not sample.files or not set(sample.files) <= names:
            return (
                f"files has the keys {', '.join(sample.files) or '-'}, expected {', '.join(MODALITIES)}, or "
                f"{SIDE_BY_SIDE} alone"
            )
        if not all(isinstance(file, str) for file in (*sample.files.values(), *sample.query_files.values())):
            return "files holds a path that is no str, expected paths below the root with forward slashes"
        for name, value, least in (
            ("identity", sample.identity, 0),
            ("camera_id", sample.camera_id, -1),
            ("scene_id", sample.scene_id, -1),
        ):
            if not isinstance(value, int) or value < least:
                return f"{name} is {value!r}, expected an integer of at least {least}"
        return ""

    def mask_files(self, sample_id: str) -> tuple[str, ...]:
        """Possible paths of the mask of a sample below the root, the published one first.

        The mask of a query that is not in the gallery lies with the queries, and some people name the folders
        after the splits.
        """
        split, _, name = sample_id.partition("/")
        folders = [self.split_folders[split], self.query_folders.get(split), split]
        if name != (name := name.removesuffix(QUERY_SUFFIX)):
            folders = [self.query_folders.get(split)]
        identity = name.partition("_")[0]
        paths = [
            self.masks.format(folder=folder, identity=identity, name=name) for folder in folders if folder
        ]
        return tuple(dict.fromkeys(paths))

    def caption_files(self, split: str) -> dict[str, str]:
        """Possible paths of the captions of a split below the root.

        The key "" has the file with one caption per sample, the key of each modality (`RGB`, `NIR`, `TIR`)
        the file with the captions of its images.
        """
        files = {"": self.captions.format(split=split, modality="")}
        for modality in MODALITIES:
            files[modality.value] = self.captions.format(
                split=split, modality=f"_{MODALITY_FOLDERS[modality]}"
            )
        return files
