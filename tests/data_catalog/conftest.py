import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE
from data_catalog.tables.table import Table
from tests.data_catalog import steps
from tests.data_catalog.folders import write_data_set


@dataclass(frozen=True)
class Built:
    """A small data set and every table of it, made once."""

    source: Path
    catalog: Path
    samples: Table
    masks: Table
    captions: Table
    text_features: Table
    view: Table


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set of 28 samples; to be copied by a test that breaks it."""
    folder = tmp_path_factory.mktemp("train_source")
    write_data_set(folder)
    return folder


@pytest.fixture
def own_source(source: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return Path(shutil.copytree(source, tmp_path / "source"))


@pytest.fixture(scope="session")
def built_once(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Every table of the data set, in shards of three samples; the view in shards of one identity."""
    catalog = tmp_path_factory.mktemp("catalog")
    tables = steps.all_steps(source, catalog)
    return Built(source, catalog, **tables)


@pytest.fixture(scope="module")
def built(built_once: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A copy for the tests of one file: they may add tables, which those of another must not find."""
    catalog = tmp_path_factory.mktemp("catalog")
    shutil.copytree(built_once.catalog, catalog, dirs_exist_ok=True)
    tables = {
        name: replace(getattr(built_once, name), catalog=str(catalog))
        for name in ("samples", "masks", "captions", "text_features", "view")
    }
    return replace(built_once, catalog=catalog, **tables)


@pytest.fixture
def actors(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are made by actors; of light ones the first shard is made in this process."""
    monkeypatch.setenv(LOCAL_SECONDS_VARIABLE, "0")


@pytest.fixture
def read_predictions(source: Path) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    """The predictions in the files, by sample id."""
    found = {}
    for split, name in (("train", "train_171"), ("val", "val"), ("test", "test")):
        for line in (source / "readings" / f"{name}.jsonl").read_text().splitlines():
            entry = json.loads(line)
            found[f"{split}/{entry['item'].removesuffix('.jpg')}"] = entry["readings"]
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A small model is far slower on several threads, above all on a machine that runs other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
