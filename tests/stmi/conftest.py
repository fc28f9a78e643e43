import pytest

from stmi.clip.loading import LoadedClip, load_clip
from tests import tiny_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> LoadedClip:
    return load_clip(tiny_clip.write(tmp_path_factory.mktemp("clip")))
