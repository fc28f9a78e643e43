"""Samples of a folder of images, for `stmi.load(...).embed`: a photograph each, or one in each modality.

    FOLDER/rgb/0001.jpg, nir/0001.png, tir/0001.png, mask/0001.png    one name in each subfolder, any ending
    FOLDER/captions.txt                                               a line a sample, in the order of names
    FOLDER/0001.jpg                                                   without subfolders: visible images alone

What a sample lacks is missing, as `embed` takes it: zeros for an image, all foreground without a mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_catalog.errors import name_first
from data_catalog.records import Record
from data_catalog.samples.file_contents import digest_files
from data_catalog.tables.digests import json_digest
from experiments.experiment_config import ConfigError
from stmi.config import ModelConfig
from stmi.modality import MODALITIES

IMAGES = tuple(str(name).lower() for name in MODALITIES)
"""Subfolders of images, which are arguments of `embed`."""
MASK = "mask"
CAPTION = "caption"
CAPTIONS_FILE = "captions.txt"
LAYOUT = f"images, or the subfolders {', '.join(IMAGES)} (and {MASK}) with one name for each sample"


@dataclass(frozen=True)
class ImageFolder:
    """Samples of a folder, in the order of their names.

    Attributes:
        root: The folder.
        names: Names of the samples: those of their files, without the ending.
        files: Files of each sample by subfolder, relative to the root; None where there is none.
        captions: Captions of each sample; None where there is none.
    """

    root: Path
    names: tuple[str, ...]
    files: Mapping[str, tuple[str | None, ...]]
    captions: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kinds(self) -> dict[str, Sequence[str | None]]:
        """What each sample has of everything that `embed` reads, by its argument."""
        return {**self.files, CAPTION: self.captions}

    @property
    def lacks(self) -> dict[str, int]:
        """How many samples lack something, by the argument of `embed`; without what all have."""
        counts = {kind: sum(value is None for value in values) for kind, values in self.kinds.items()}
        return {kind: count for kind, count in counts.items() if count}

    def contents(self) -> list[str]:
        """What stands for the content of each sample: a digest of its files and its caption.

        Files are read only where their size or time of change is another one than before.
        """
        found = digest_files(self.root, [file for files in self.files.values() for file in files if file])
        return [
            json_digest(
                {kind: found.get(files[row] or "") for kind, files in self.files.items()}
                | {CAPTION: self.captions[row]}
            )
            for row in range(len(self))
        ]

    def arguments(self, rows: Sequence[int]) -> dict[str, Any]:
        """What `embed` takes of some samples, a list by argument."""
        found: dict[str, Any] = {
            kind: [None if files[row] is None else self.root / str(files[row]) for row in rows]
            for kind, files in self.files.items()
        }
        return found | {CAPTION: [self.captions[row] for row in rows]}


class FolderEmbeddings(Record):
    """Features of a folder of images."""

    run: str
    epoch: int
    images: str
    embeddings: str
    """The Parquet file."""
    samples: int
    """How many were embedded."""
    features: dict[str, int]
    """Name to width."""
    left_out: dict[str, str]
    """Samples that cannot be used, and why."""
    notes: tuple[str, ...]


def read_folder(root: Path) -> ImageFolder:
    """The samples of a folder; no image is opened.

    Raises:
        ConfigError: There are none, a name occurs twice, or masks or captions fit no sample.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder; expected {LAYOUT}")
    subfolders = {name: f"{name}/" for name in IMAGES if (root / name).is_dir()} or {IMAGES[0]: ""}
    by_kind = {kind: _by_name(root, below) for kind, below in (subfolders | {MASK: f"{MASK}/"}).items()}
    names = sorted(set().union(*(by_kind[kind] for kind in subfolders)))
    if not names:
        raise ConfigError(f"{root} has no images; expected {LAYOUT}")
    if lone := sorted(by_kind[MASK].keys() - set(names)):
        raise ConfigError(f"{root}/{MASK}: {name_first(lone)} belong to no image; expected the images' names")
    files = {kind: tuple(by_kind.get(kind, {}).get(name) for name in names) for kind in (*IMAGES, MASK)}
    return ImageFolder(root, tuple(names), files, _captions(root, len(names)))


def _by_name(root: Path, below: str) -> dict[str, str]:
    """Files of a subfolder by their names without ending; hidden ones are none of them."""
    found: dict[str, str] = {}
    folder = root / below
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.is_dir() or (not below and path.name == CAPTIONS_FILE):
            continue
        if path.stem in found:
            raise ConfigError(f"{root}: {found[path.stem]} and {below}{path.name} have one name; rename one")
        found[path.stem] = f"{below}{path.name}"
    return found


def _captions(root: Path, count: int) -> tuple[str | None, ...]:
    path = root / CAPTIONS_FILE
    if not path.is_file():
        return (None,) * count
    try:
        # A caption may hold what `str.splitlines` takes for the end of a line.
        with path.open(encoding="utf-8") as file:
            lines = list(file)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    if len(lines) != count:
        raise ConfigError(
            f"{path} has {len(lines)} lines, expected {count}: one for each sample, in the order of their "
            "names, empty where a sample has no caption"
        )
    return tuple(line.strip() or None for line in lines)


def effects_of_missing(model: ModelConfig) -> dict[str, str]:
    """What a model reads of a sample, and what becomes of what is missing, by the argument of `embed`."""
    effects = {str(name).lower(): f"{name} image: it becomes zeros" for name in MODALITIES}
    if model.sfm.enabled:
        effects[MASK] = "mask: all of the image counts as foreground"
    if model.text.enabled:
        effects[CAPTION] = "caption: the text feature is zero"
    return effects
