"""Tiny vehicle data sets written by hand, in the layouts RGBNT100 and MSVR310."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 16, 32
VEHICLE_FOLDERS = ("vis", "ni", "th")

RGBNT100 = {
    "bounding_box_train": ["0001_c0001_000", "0001_c0002_000", "0002_c0001_000", "0002_c0008_001"],
    "bounding_box_test": ["0501_c0001_000", "0501_c0002_000", "0502_c0001_000", "0502_c0003_000"],
    "query": ["0501_c0001_000", "0502_c0003_000", "0502_c0004_007"],
}
MSVR310 = {
    "bounding_box_train": ["0001_s001_v0_000", "0001_s002_v7_000", "0003_s001_v1_000", "0003_s001_v2_001"],
    "bounding_box_test": ["0019_s012_v0_000", "0019_s013_v1_000", "0020_s012_v0_000", "0020_s014_v3_000"],
    "query3": ["0019_s012_v0_000", "0020_s014_v3_000", "0020_s015_v4_002"],
}


def write_side_by_side(
    path: Path, rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH
) -> None:
    """A JPEG of three images in different colours, side by side."""
    colours = rng.integers(0, 256, (3, 1, 3))
    pixels = np.repeat(np.repeat(colours, width, axis=1).reshape(1, 3 * width, 3), height, axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95, subsampling=0)


def write_rgbnt100(source: Path) -> Path:
    """RGBNT100 below `source`; gives its root."""
    rng = np.random.default_rng(0)
    for folder, names in RGBNT100.items():
        for name in names:
            write_side_by_side(source / "RGBNT100" / "rgbir" / folder / f"{name}.jpg", rng)
    images = source / "RGBNT100" / "rgbir"
    for name in shared(RGBNT100, "query"):
        shutil.copy(images / "bounding_box_test" / f"{name}.jpg", images / "query" / f"{name}.jpg")
    return source / "RGBNT100"


def shared(layout: dict[str, list[str]], query: str) -> list[str]:
    """Names of the queries that are in the gallery, too."""
    return [name for name in layout[query] if name in layout["bounding_box_test"]]


def write_image(path: Path, rng: np.random.Generator) -> None:
    """A JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def msvr310_path(root: Path, folder: str, name: str, modality: str = "vis") -> Path:
    """Where an image of MSVR310 lies."""
    return root / folder / name[:4] / modality / f"{name}.jpg"


def write_msvr310(source: Path) -> Path:
    """MSVR310 below `source`; gives its root."""
    rng = np.random.default_rng(0)
    root = source / "MSVR310"
    for folder, names in MSVR310.items():
        for name in names:
            for modality in VEHICLE_FOLDERS:
                write_image(msvr310_path(root, folder, name, modality), rng)
    for name in shared(MSVR310, "query3"):
        for modality in VEHICLE_FOLDERS:
            gallery = msvr310_path(root, "bounding_box_test", name, modality)
            shutil.copy(gallery, msvr310_path(root, "query3", name, modality))
    return root
