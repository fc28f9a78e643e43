"""A bucket that goes away, is missing, lets nobody in, or does not answer."""

import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from urllib.parse import urlencode
from wsgiref.simple_server import make_server

import pytest
from pyarrow import fs

from data_catalog.errors import CatalogError
from data_catalog.storage import object_stores
from data_catalog.storage.filesystems import ONE_UPLOAD_BYTES, open_root
from data_catalog.storage.folders import Folder
from data_catalog.tables.table import list_datasets
from tests.conftest import S3_SECRET
from tests.two_hosts.object_store import BUCKET, REGION, ObjectStore

ATTEMPTS = object_stores._ATTEMPTS


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyArrow itself does not try again, and no bucket was used before."""
    monkeypatch.setattr(object_stores, "_ATTEMPTS", 1)
    object_stores._bucket.cache_clear()
    yield
    object_stores._bucket.cache_clear()


@pytest.fixture
def uri(store: ObjectStore) -> Callable[[str], str]:
    """From `bucket/folder` to the URI of a folder of the store."""
    host = store.environment["AWS_ENDPOINT_URL"].partition("://")[2]
    query = urlencode({"endpoint_override": host, "scheme": "http", "region": REGION})
    return lambda folder: f"s3://{folder}?{query}"


@pytest.mark.parametrize("size", [3, 2 * ONE_UPLOAD_BYTES])
def test_files_are_written_and_read_while_the_storage_goes_away_and_comes_back(
    store: ObjectStore, uri: Callable[[str], str], size: int
) -> None:
    folder = Folder(uri(f"{BUCKET}/away{size}"))
    folder.write("before", b"a" * size)
    with store.unavailable():
        threading.Timer(1.0, store.recover).start()
        folder.write("file", b"b" * size)
        assert folder.read("file") == b"b" * size
    with store.unavailable():
        threading.Timer(0.5, store.recover).start()
        assert list(folder.list_files()) == ["before", "file"]


def test_reading_goes_on_in_the_middle_of_a_file(store: ObjectStore, uri: Callable[[str], str]) -> None:
    folder = Folder(uri(f"{BUCKET}/middle"))
    folder.write("file", bytes(range(256)) * 100)
    filesystem, path = open_root(folder.file("file"))
    with filesystem.open_input_file(path) as file:
        assert file.read(300) == (bytes(range(256)) * 2)[:300]
        with store.unavailable():
            threading.Timer(1.0, store.recover).start()
            assert file.read(300) == (bytes(range(256)) * 3)[300:600]
        assert file.size() == 25600


def test_filesystem_that_is_sent_to_a_worker_reads_there_and_holds_no_credentials(
    uri: Callable[[str], str],
) -> None:
    Folder(uri(BUCKET)).write("sent", "content")
    filesystem, path = open_root(uri(BUCKET))
    sent = pickle.dumps(filesystem)
    assert S3_SECRET.encode() not in sent
    again = pickle.loads(sent)
    assert again == filesystem
    assert again.open_input_stream(f"{path}/sent").read() == b"content"


@pytest.mark.parametrize("use", [lambda folder: folder.list_files(), lambda folder: folder.write("a", "b")])
def test_bucket_that_does_not_exist_is_named(
    uri: Callable[[str], str], use: Callable[[Folder], object]
) -> None:
    with pytest.raises(CatalogError, match="bucket nobodys of s3://nobodys does not exist"):
        use(Folder(uri("nobodys/x")))


@pytest.mark.parametrize("use", [lambda folder: folder.list_files(), lambda folder: folder.write("a", "b")])
def test_missing_credentials_are_named(
    uri: Callable[[str], str],
    use: Callable[[Folder], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    began = time.monotonic()
    with pytest.raises(CatalogError, match=r"cannot be reached: there are no credentials.*AWS_ACCESS_KEY_ID"):
        use(Folder(uri(f"{BUCKET}/x")))
    assert time.monotonic() - began < 30


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refusing() -> Iterator[str]:
    """Address at which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize("bucket", ["s3://lab", "gs://anonymous@lab"])
def test_server_that_never_answers_is_given_up(
    silent: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_seconds = 3
    assert ATTEMPTS * (object_stores._CONNECT_SECONDS + object_stores._SILENT_SECONDS) + pauses_seconds < 30
    monkeypatch.setattr(object_stores, "_SILENT_SECONDS", 1.0)
    began = time.monotonic()
    query = urlencode({"endpoint_override": silent, "scheme": "http"})
    region = f"&region={REGION}" if bucket.startswith("s3") else ""
    with pytest.raises(CatalogError, match=r"lab/x.* cannot be reached .* check its address"):
        list_datasets(f"{bucket}/x?{query}{region}")
    assert time.monotonic() - began < 5


@pytest.fixture(params=[401, 403])
def unfriendly(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server that answers every request with a status, as Google does without credentials."""

    def refuse(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
        start_response(f"{request.param} Refused", [("Content-Length", "0")])
        return []

    with make_server("127.0.0.1", 0, refuse) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("use", [lambda folder: folder.list_files(), lambda folder: folder.write("a", "b")])
def test_missing_credentials_for_google_are_named(unfriendly: str, use: Callable[[Folder], object]) -> None:
    query = urlencode({"endpoint_override": unfriendly, "scheme": "http"})
    with pytest.raises(
        CatalogError, match=r"cannot be reached: there are no credentials.*GOOGLE_APPLICATION_CRED"
    ):
        use(Folder(f"gs://anonymous@lab/x?{query}"))


def test_google_server_that_is_not_there_is_given_up(refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timedelta(seconds=1) < object_stores._GCS_TIME < timedelta(seconds=15)
    monkeypatch.setattr(object_stores, "_GCS_TIME", timedelta(seconds=1))
    query = urlencode({"endpoint_override": refusing, "scheme": "http"})
    began = time.monotonic()
    with pytest.raises(CatalogError, match=r"lab/x cannot be reached .*UNAVAILABLE.* check its address"):
        list_datasets(f"gs://anonymous@lab/x?{query}")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_options_of_a_uri_are_those_of_the_filesystem(scheme: str) -> None:
    uri = f"{scheme}://{'anonymous@' if scheme == 'gs' else ''}lab?endpoint_override=127.0.0.1:9&scheme=http"
    options = object_stores._options(object_stores._bucket(uri).filesystem)
    expected = object_stores._options(fs.FileSystem.from_uri(uri)[0])
    changed = {name for name in expected if options[name] != expected[name]}
    assert changed == (
        {"connect_timeout", "request_timeout", "background_writes", "allow_delayed_open"}
        if scheme == "s3"
        else {"retry_time_limit"}
    )
