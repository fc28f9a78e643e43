"""The RGBNT100 layout: `RGBNT100/rgbir/{bounding_box_train,query,bounding_box_test}/0548_c0002_000.jpg`.

One JPEG holds RGB, NIR and TIR side by side. Its name has four digits of identity, `c` and the camera
counted from 1, then anything that distinguishes the shots. `bounding_box_test` is the gallery. Images in
`query` with the same name are copies with the same bytes; an image with another name is only a query.
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
from data_catalog.formats.source import SIDE_BY_SIDE, Listing, Rejected, SourceFormat, SourceSample

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
    rejected: list[Rejected] = []
    found: dict[str, dict[str, NamedImage]] = {}
    for folder, needed in ((TRAIN, "training images"), (QUERY, "queries"), (GALLERY, "gallery")):
        path = f"{IMAGES}/{folder}"
        found[folder], faults = read_names(path, list_entries(root, path, _LAYOUT)[1], _NAME)
        rejected += faults
        refuse_empty(source, path, len(found[folder]), faults, needed)
    samples = [_sample("train", image, None, False) for image in found[TRAIN].values()]
    # Of an image in both folders the gallery's file is taken.
    for name, image in (found[QUERY] | found[GALLERY]).items():
        samples.append(_sample("test", image, found[QUERY].get(name), name in found[GALLERY]))
    samples.sort(key=lambda sample: sample.sample_id)
    return Listing(root, tuple(samples), tuple(rejected))


def _sample(split: str, image: NamedImage, query: NamedImage | None, is_gallery: bool) -> SourceSample:
    return SourceSample(
        sample_id=f"{split}/{image.name}",
        split=split,
        identity=image.identity,
        camera_id=int(image.parts["camera"]) - 1,
        scene_id=-1,
        is_query=query is not None,
        is_gallery=is_gallery,
        files={SIDE_BY_SIDE: image.path},
        query_files={SIDE_BY_SIDE: query.path} if query is not None and is_gallery else {},
    )


FORMAT = SourceFormat(
    name="rgbnt100",
    split_folders={"train": TRAIN, "test": GALLERY},
    list_samples=list_samples,
    masks="mask/{folder}/{name}.npy",
    captions="rgbir/text/{split}{modality}.json",
    query_folders={"test": QUERY},
)
