"""The RGBNT201 layout: `RGBNT201/{train_171,val,test}/{RGB,NI,TI}/000028_cam1_0_02.jpg`.

A sample has one name in the three folders: six digits of identity, `cam` and the camera counted from 1,
then anything that distinguishes the shots. Every triplet of `test` is both query and gallery; so is every
triplet of `val`, a split that the published data set does not have.
"""

import re
from pathlib import Path

from data_catalog.formats.folder_listing import (
    NamedImage,
    NamePattern,
    find_root,
    list_entries,
    read_names,
    refuse_empty,
)
from data_catalog.formats.source import MODALITY_FOLDERS, Listing, Rejected, SourceFormat, SourceSample

FOLDER = "RGBNT201"
SPLIT_FOLDERS = {"train": "train_171", "val": "val", "test": "test"}
OPTIONAL_SPLITS = frozenset({"val"})
SYNTHESIS_MANIFEST = "synthesis.json"
"""Beside a data set that `data_catalog.synthetic` generated: the settings that it was made with."""

_NAME = NamePattern(
    re.compile(r"(?P<identity>-1|\d{6})_cam(?P<camera>[1-9]\d{0,3})_\w+", re.ASCII),
    "a name like 000028_cam1_0_02.jpg (six digits of identity, camera from 1)",
)
_LAYOUT = f"the RGBNT201 layout needs {', '.join(MODALITY_FOLDERS.values())} in every split folder"


def list_samples(source: Path) -> Listing:
    """Samples of a source folder, sorted by id.

    Args:
        source: The folder `RGBNT201`, or the one that contains it.

    Raises:
        CatalogError: If the folder, or a required one in it, is missing, empty or cannot be read.
    """
    root = find_root(source, FOLDER, SPLIT_FOLDERS["train"])
    samples: list[SourceSample] = []
    rejected: list[Rejected] = []
    for split, folder in SPLIT_FOLDERS.items():
        if split in OPTIONAL_SPLITS and not (root / folder).exists():
            continue
        files: dict[str, dict[str, str]] = {}
        images: dict[str, NamedImage] = {}
        for modality, modality_folder in MODALITY_FOLDERS.items():
            path = f"{folder}/{modality_folder}"
            found, faults = read_names(path, list_entries(root, path, _LAYOUT)[1], _NAME)
            rejected += faults
            for name, image in found.items():
                files.setdefault(name, {})[modality] = image.path
                images[name] = image
        refuse_empty(source, folder, len(images), rejected, f"images of split {split!r}")
        samples += [_sample(split, image, files[name]) for name, image in images.items()]
    samples.sort(key=lambda sample: sample.sample_id)
    return Listing(root, tuple(samples), tuple(rejected))


def _sample(split: str, image: NamedImage, files: dict[str, str]) -> SourceSample:
    evaluated = split != "train"
    return SourceSample(
        sample_id=f"{split}/{image.name}",
        split=split,
        identity=image.identity,
        camera_id=int(image.parts["camera"]) - 1,
        scene_id=-1,
        is_query=evaluated,
        is_gallery=evaluated,
        files=files,
    )


TREE = """\
RGBNT201/
  train_171/
    RGB/000028_cam1_0_02.jpg   identity 28, camera 1 (camera_id 0 in tables)
    NI/000028_cam1_0_02.jpg    the same name in the three folders
    TI/000028_cam1_0_02.jpg
    mask/000028_cam1_0_02.npy  optional, for masks --segmenter files
  val/                         optional, like train_171
  test/                        like train_171; all are queries and gallery
  text/train.json              optional, for captions --captioner files
"""

FORMAT = SourceFormat(
    name="rgbnt201",
    split_folders=SPLIT_FOLDERS,
    list_samples=list_samples,
    masks="{folder}/mask/{name}.npy",
    captions="text/{split}{modality}.json",
    tree=TREE,
    first_camera=1,
)
