from collections.abc import Iterator

import pytest
import torch

from stmi.clip.loading import LoadedClip, load_clip
from tests import tiny_clip


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
