"""Files named as in Market-1501, with the modality, in train, query, gallery: 0002_c1_000451_RGB.jpg."""

import re
from pathlib import Path

from data_catalog.formats import Listing, Rejected, SourceFormat, SourceSample

SPLITS = {"train": "train", "query": "test", "gallery": "test"}
NAME = re.compile(r"((?P<identity>\d{4})_c(?P<camera>[1-9])_\d+)_(?P<modality>RGB|NIR|TIR)\.jpg")


def list_samples(source: Path) -> Listing:
    files: dict[str, dict[str, str]] = {}
    samples: dict[str, SourceSample] = {}
    rejected = []
    for path in sorted(path for folder in SPLITS for path in source.glob(f"{folder}/*")):
        folder, file = path.parent.name, path.relative_to(source).as_posix()
        if (name := NAME.fullmatch(path.name)) is None:
            rejected.append(Rejected(file=file, reason="is not named like 0002_c1_000451_RGB.jpg"))
            continue
        sample_id = f"{SPLITS[folder]}/{folder}_{name[1]}"
        files.setdefault(sample_id, {})[name["modality"]] = file
        samples[sample_id] = SourceSample(
            sample_id=sample_id,
            split=SPLITS[folder],
            identity=int(name["identity"]),
            camera_id=int(name["camera"]) - 1,  # tables count cameras from 0
            scene_id=-1,  # none
            is_query=folder == "query",
            is_gallery=folder == "gallery",
            files=files[sample_id],
        )
    return Listing(source, tuple(samples.values()), tuple(rejected))


MARKET = SourceFormat("market", {"train": "train", "test": "gallery"}, list_samples, first_camera=1)
