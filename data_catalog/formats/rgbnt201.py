"""The RGBNT201 layout: `RGBNT201/{train_171,val,test}/{RGB,NI,TI}/000028_cam1_0_02.jpg`.

A sample has one name in the three folders: six digits of identity, `cam` and the camera counted from 1,
then whatever tells the shots apart. Every triplet of `test` (and of `val`, which is ours: the published
data set has none) is both query and gallery.
"""

import os
import re
from pathlib import Path

from data_catalog.errors import CatalogError
from data_catalog.formats.source import Listing, Rejected, SourceFormat, SourceSample
from stmi.modality import Modality

FOLDER = "RGBNT201"
SPLIT_FOLDERS = {"train": "train_171", "val": "val", "test": "test"}
OPTIONAL_SPLITS = frozenset({"val"})
MODALITY_FOLDERS = {Modality.RGB: "RGB", Modality.NIR: "NI", Modality.TIR: "TI"}

_NAME = re.compile(r"(?P<identity>\d{6})_cam(?P<camera>[1-9]\d*)_\w+\.jpg", re.ASCII)
_EXPECTED_NAME = "a name like 000028_cam1_0_02.jpg (six digits of identity, camera from 1)"


def list_samples(source: Path) -> Listing:
    """Samples of a source folder, sorted by id.

    Args:
        source: The folder `RGBNT201`, or the one it lies in.

    Raises:
        CatalogError: If the folder, or one that it must hold, is missing or cannot be read.
    """
    root = _root(source)
    samples: list[SourceSample] = []
    rejected: list[Rejected] = []
    for split, folder in SPLIT_FOLDERS.items():
        if split in OPTIONAL_SPLITS and not (root / folder).exists():
            continue
        found: dict[str, dict[Modality, str]] = {}
        for modality, modality_folder in MODALITY_FOLDERS.items():
            relative = f"{folder}/{modality_folder}"
            for name in _file_names(root / folder / modality_folder):
                if _NAME.fullmatch(name):
                    found.setdefault(name, {})[modality] = f"{relative}/{name}"
                elif not name.startswith("."):
                    printable = name.encode(errors="backslashreplace").decode()
                    rejected.append(Rejected(f"{relative}/{printable}", f"is not {_EXPECTED_NAME}"))
        samples += [_sample(split, name, files) for name, files in found.items()]
    samples.sort(key=lambda sample: sample.sample_id)
    return Listing(root, tuple(samples), tuple(rejected))


def _root(source: Path) -> Path:
    for candidate in (source, source / FOLDER):
        if (candidate / SPLIT_FOLDERS["train"]).is_dir():
            return candidate
    raise CatalogError(
        f"source {source} holds no folder {SPLIT_FOLDERS['train']}; give the folder {FOLDER} or the one it "
        "lies in"
    )


def _file_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError as error:
        raise CatalogError(
            f"folder {folder} cannot be read ({error.strerror}); the RGBNT201 layout needs "
            f"{', '.join(MODALITY_FOLDERS.values())} in every split folder"
        ) from error


def _sample(split: str, name: str, files: dict[Modality, str]) -> SourceSample:
    match = _NAME.fullmatch(name)
    assert match is not None
    evaluated = split != "train"
    return SourceSample(
        sample_id=f"{split}/{name.removesuffix('.jpg')}",
        split=split,
        identity=int(match["identity"]),
        camera_id=int(match["camera"]) - 1,
        scene_id=-1,
        is_query=evaluated,
        is_gallery=evaluated,
        files=files,
    )


FORMAT = SourceFormat("rgbnt201", SPLIT_FOLDERS, list_samples)
