import contextlib
import io
import json

import pytest

from data_catalog.errors import StorageAwayError
from data_catalog.storage import filesystems, object_stores
from experiments import ablate
from experiments import report as report_script
from tests import tiny_clip
from tests.experiments import small_run


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return tiny_clip.write(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture
def without_storage(monkeypatch):
    """Context in which no folder can be read or written, as without object storage; MLflow still answers."""

    def refuse(*given):
        raise StorageAwayError("s3://lab has not answered")

    @contextlib.contextmanager
    def lose():
        with monkeypatch.context() as patched:
            for request in ("exists", "list_files", "read_bytes", "write_atomically"):
                patched.setattr(filesystems, request, refuse)
            yield

    return lose


@pytest.fixture
def trained(ray_session, capsys, clip, workspace):
    """The run that the tests share: trained by the first one that asks, found by the others."""
    return small_run.run(capsys, clip, workspace, "--workers", "2")


@pytest.fixture(scope="session")
def study(ray_session, clip, workspace):
    """The result of the ablation that the tests share: Tables 3 and 4 with two seeds of the small run."""
    asked = ["--table", "3", "4", "--seeds", "2", *small_run.options(clip), "--workspace", str(workspace)]
    return json.loads(ablate.ablate(ablate.parser().parse_args(asked)).to_json())


@pytest.fixture(scope="session")
def report(study, workspace):
    """What `report.py --study` prints of that study: where its page is."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert report_script.main(["--study", study["study"], "--workspace", str(workspace), "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.fixture
def private_store():
    """An S3 server on loopback with a bucket, which asks for credentials."""
    from tests.two_hosts.object_store import ObjectStore  # noqa: PLC0415 - takes seconds

    store = ObjectStore()
    object_stores._bucket.cache_clear()
    yield store
    object_stores._bucket.cache_clear()
    store.close()
