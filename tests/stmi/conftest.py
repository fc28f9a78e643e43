import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import stmi
from stmi.clip.loading import LoadedClip, load_clip
from tests import json_samples, kept_workspace, tiny_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> LoadedClip:
    return load_clip(tiny_clip.write(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors of tests are tiny: a second thread only waits, and long if other processes run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of an older version, with a run, its data and its tables."""
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="session")
def folder(workspace: Path) -> Path:
    """The run's folder."""
    return workspace / "train" / json.loads((json_samples.FOLDER / "train.json").read_text())["run"]


@pytest.fixture(scope="session")
def run(folder: Path) -> stmi.TrainedRun:
    return stmi.load(folder, device="cpu")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The run, moved to another folder; where it was is not known to it any more."""
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    result = moved / "result.json"
    result.write_text(result.read_text().replace(str(folder), "/gone"))
    return moved
