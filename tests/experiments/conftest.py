import pytest

from tests import tiny_clip
from tests.experiments import small_run


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return tiny_clip.write(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture
def trained(ray_session, capsys, clip, workspace):
    """The run that the tests share: trained by the first one that asks, found by the others."""
    return small_run.run(capsys, clip, workspace, "--workers", "2")
