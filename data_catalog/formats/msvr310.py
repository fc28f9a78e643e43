"""The MSVR310 layout: `MSVR310/{bounding_box_train,query3,bounding_box_test}/0019/{vis,ni,th}/` + name.

Every vehicle has a folder. A sample has one name in its three folders, `0019_s012_v0_000.jpg`: four digits
of identity, `s` and three digits of scene, `v` and the view (0 to 7), then anything that distinguishes the
shots. The view counts as the camera. `bounding_box_test` is the gallery. Images in `query3` with the same
name are copies with the same bytes, or become samples of their own; an image with another name is only a
query.
"""

import os
import re
from pathlib import Path

from data_catalog.formats.folder_listing import (
    NamedImage,
    NamePattern,
    find_root,
    leave_out,
    list_entries,
    list_with_queries,
    read_names,
)
from data_catalog.formats.source import Listing, Rejected, SourceFormat
from stmi.modality import Modality

FOLDER = "MSVR310"
TRAIN, QUERY, GALLERY = "bounding_box_train", "query3", "bounding_box_test"
VEHICLE_FOLDERS = {Modality.RGB: "vis", Modality.NIR: "ni", Modality.TIR: "th"}

_NAME = NamePattern(
    re.compile(r"(?P<identity>-1|\d{4})_s(?P<scene>\d{3})_v(?P<view>[0-7])_\w+", re.ASCII),
    "a name like 0019_s012_v0_000.jpg (four digits of identity, three of scene, view 0 to 7)",
)
_LAYOUT = (
    f"the MSVR310 layout needs a folder of every vehicle in {TRAIN}, {QUERY} and {GALLERY}, each with "
    f"{', '.join(VEHICLE_FOLDERS.values())}"
)


def list_samples(source: Path) -> Listing:
    """Samples of a source folder, sorted by id.

    Args:
        source: The folder `MSVR310`, or the one that contains it.

    Raises:
        CatalogError: If the folder, or a required one in it, is missing, empty or cannot be read.
    """
    root = find_root(source, FOLDER, TRAIN)

    def find_view(image: NamedImage) -> tuple[int, int]:
        return int(image.parts["view"]), int(image.parts["scene"])

    return list_with_queries(
        source, root, (TRAIN, QUERY, GALLERY), lambda folder: _triplets(root, folder), find_view
    )


def _triplets(root: Path, folder: str) -> tuple[dict[str, dict[str, NamedImage]], list[Rejected]]:
    """The images of a folder by name and modality, from the folders of all its vehicles."""
    triplets: dict[str, dict[str, NamedImage]] = {}
    vehicles, stray = list_entries(root, folder, _LAYOUT)
    rejected = [leave_out(f"{folder}/{file}", "lies in no folder of a vehicle") for file in stray]
    for vehicle in vehicles:
        paths = {modality: f"{folder}/{vehicle}/{name}" for modality, name in VEHICLE_FOLDERS.items()}
        # If one of the three is missing, ingest quarantines the samples; a broken link does not count as
        # missing.
        paths = {modality: path for modality, path in paths.items() if os.path.lexists(root / path)}
        if not paths:
            reason = f"holds none of the folders {', '.join(VEHICLE_FOLDERS.values())}"
            rejected.append(leave_out(f"{folder}/{vehicle}", reason))
        for modality, path in paths.items():
            found, faults = read_names(path, list_entries(root, path, _LAYOUT)[1], _NAME)
            rejected += faults
            for name, image in found.items():
                if not vehicle.isdecimal() or int(vehicle) != image.identity:
                    reason = f"has identity {image.identity} but lies in the folder of vehicle {vehicle!r}"
                elif modality in triplets.get(name, {}):
                    reason = f"has the same name as {triplets[name][modality].path}; keep one of the two"
                else:
                    triplets.setdefault(name, {})[modality] = image
                    continue
                rejected.append(leave_out(image.path, f"{reason}; it is left out"))
    return triplets, rejected


TREE = """\
MSVR310/
  bounding_box_train/
    0019/                       one folder for each vehicle
      vis/0019_s012_v0_000.jpg  RGB; identity 19, scene 12, view 0, which is
                                camera_id 0 in tables
      ni/0019_s012_v0_000.jpg   NIR, the same name
      th/0019_s012_v0_000.jpg   TIR
  query3/                       like bounding_box_train
  bounding_box_test/            like bounding_box_train; the gallery
  mask/bounding_box_train/
    0019/0019_s012_v0_000.npy   optional, for masks --segmenter files
  text/train.json               optional, for captions --captioner files
"""

FORMAT = SourceFormat(
    name="msvr310",
    split_folders={"train": TRAIN, "test": GALLERY},
    list_samples=list_samples,
    masks="mask/{folder}/{identity}/{name}.npy",
    captions="text/{split}{modality}.json",
    query_folders={"test": QUERY},
    tree=TREE,
)
