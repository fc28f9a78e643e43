"""The RGBNT100 layout: `RGBNT100/rgbir/{bounding_box_train,query,bounding_box_test}/0548_c0002_000.jpg`.

One JPEG holds RGB, NIR and TIR side by side. Its name has four digits of identity, `c` and the camera
counted from 1, then anything that distinguishes the shots. `bounding_box_test` is the gallery. Images in
`query` with the same name are copies with the same bytes, or become samples of their own; an image with
another name is only a query.
"""

import re
from pathlib import Path

from data_catalog.formats.folder_listing import (
    Images,
    NamePattern,
    find_root,
    list_entries,
    list_with_queries,
    read_names,
)
from data_catalog.formats.source import SIDE_BY_SIDE, Listing, Rejected, SourceFormat

FOLDER = "RGBNT100"
IMAGES = "rgbir"
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"

_NAME = NamePattern(
    re.compile(r"(?P<identity>-1|\d{4})_c(?P<camera>0*[1-9]\d{0,3})_\w+", re.ASCII),
    "a name like 0548_c0002_000.jpg (four digits of identity, camera from 1)",
)
_LAYOUT = f"the RGBNT100 layout needs {TRAIN}, {QUERY} and {GALLERY} in the folder {IMAGES}"


def list_samples(source: Path) -> Listing:
    """Samples of a source folder, sorted by id.

    Args:
        source: The folder `RGBNT100`, or the one that contains it.

    Raises:
        CatalogError: If the folder, or a required one in it, is missing, empty or cannot be read.
    """
    root = find_root(source, FOLDER, f"{IMAGES}/{TRAIN}")

    def read(folder: str) -> tuple[dict[str, Images], list[Rejected]]:
        images, rejected = read_names(folder, list_entries(root, folder, _LAYOUT)[1], _NAME)
        return {name: {SIDE_BY_SIDE: image} for name, image in images.items()}, rejected

    folders = (f"{IMAGES}/{TRAIN}", f"{IMAGES}/{QUERY}", f"{IMAGES}/{GALLERY}")
    return list_with_queries(source, root, folders, read, lambda image: (int(image.parts["camera"]) - 1, -1))


TREE = """\
RGBNT100/
  rgbir/
    bounding_box_train/
      0548_c0002_000.jpg  RGB, NIR and TIR side by side; identity 548,
                          camera 2 (camera_id 1 in tables)
    query/
      0549_c0001_000.jpg
    bounding_box_test/    the gallery
      0549_c0001_000.jpg
    text/train.json       optional, for captions --captioner files
  mask/bounding_box_train/
    0548_c0002_000.npy    optional, for masks --segmenter files
"""

FORMAT = SourceFormat(
    name="rgbnt100",
    split_folders={"train": TRAIN, "test": GALLERY},
    list_samples=list_samples,
    masks="mask/{folder}/{name}.npy",
    captions="rgbir/text/{split}{modality}.json",
    query_folders={"test": QUERY},
    tree=TREE,
    first_camera=1,
)
