import json
import shutil
from pathlib import Path

import pytest

import stmi
from tests import json_samples, kept_workspace

FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
"""Folder of each modality in RGBNT201's layout."""


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> Path:
    """A workspace of an older version, with a run, its data and its tables."""
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="session")
def run_folder(kept) -> Path:
    return kept / "train" / json.loads((json_samples.FOLDER / "train.json").read_text())["run"]


@pytest.fixture(scope="session")
def run(run_folder) -> stmi.TrainedRun:
    return stmi.load(run_folder, device="cpu")


@pytest.fixture(scope="session")
def images(kept) -> dict[str, list[Path]]:
    """The test images of each modality, in the order of their names."""
    root = next((kept / "data").glob("*/RGBNT201/test"))
    return {name: sorted((root / sub).iterdir()) for name, sub in FOLDERS.items()}


@pytest.fixture
def yard(images, tmp_path) -> Path:
    """A folder of eight samples in three modalities, of which one has no NIR image."""
    folder = tmp_path / "yard"
    for name, files in images.items():
        (folder / name).mkdir(parents=True)
        for file in files[:8]:
            shutil.copy(file, folder / name)
    (folder / "nir" / images["nir"][2].name).unlink()
    return folder
