"""A catalog in object storage: a real S3 server on loopback."""

import io
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from data_catalog.__main__ import main
from data_catalog.errors import CatalogError
from data_catalog.inspect.verification import verify
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.storage import local_copies
from data_catalog.storage.filesystems import join, list_files, open_root, remove_partial_files
from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE
from data_catalog.tables.table import Table, list_datasets, list_tables
from data_catalog.views.view_reader import open_view
from tests.conftest import BUCKET, S3_SECRET
from tests.data_catalog import steps
from tests.data_catalog.conftest import Built
from tests.data_catalog.folders import HEIGHT, WIDTH
from tests.data_catalog.memory import no_copies
from tests.data_catalog.tables import slow_build


@pytest.fixture(scope="module")
def catalog(object_storage: Callable[[str], str]) -> str:
    """URI of an empty catalog."""
    return object_storage("one")


@pytest.fixture(scope="module")
def view(catalog: str, source: Path, ray_session: None) -> Table:
    """The training view, made step by step in object storage by actors."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(LOCAL_SECONDS_VARIABLE, "0")
        return steps.all_steps(source, catalog)["view"]


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shards are copied to."""
    folder = tmp_path / "copies"
    monkeypatch.setenv(local_copies.FOLDER_VARIABLE, str(folder))
    return folder


def test_every_step_by_actors_gives_the_digest_of_one_process_on_a_local_disk(
    view: Table, catalog: str, source: Path, built: Built, copies: Path
) -> None:
    local = built.view
    assert [table.digest for table in list_tables(catalog, "small")] == [
        table.digest for table in (built.samples, built.masks, built.captions, built.text_features, local)
    ]
    rows = np.arange(len(local))
    remote_batch, local_batch = open_view(view).batch(rows), open_view(local).batch(rows)
    for name, values in vars(local_batch).items():
        assert np.array_equal(getattr(remote_batch, name), values), name
    assert list_datasets(catalog) == ["small"]
    assert ingest(source, catalog, "small", IngestSettings(samples_per_shard=3)).reused


def test_shards_of_a_view_are_fetched_once_and_mapped(view: Table, copies: Path) -> None:
    opened = open_view(view)
    files = sorted(copies.rglob("*.arrow"))
    assert [file.stem for file in files] == sorted(shard.sha256 for shard in view.manifest.shards)
    before = {file: file.stat().st_mtime_ns for file in files}
    # A second fetch would find other bytes, as the test below shows.
    with changed_shard(view):
        with no_copies(len(view) * 9 * HEIGHT * WIDTH):
            again = open_view(view)
        assert np.array_equal(again.batch([3, 1]).pixels, opened.batch([3, 1]).pixels)
    assert {file: file.stat().st_mtime_ns for file in copies.rglob("*.arrow")} == before


def test_copy_that_was_cut_short_is_fetched_again(view: Table, copies: Path) -> None:
    whole = open_view(view).batch([0]).pixels
    copy = next(path for path in copies.rglob("*.arrow") if path.stem == view.manifest.shards[0].sha256)
    data = copy.read_bytes()
    copy.write_bytes(data[:-100])
    assert np.array_equal(open_view(view).batch([0]).pixels, whole)
    assert copy.read_bytes() == data


def test_only_the_shards_that_are_asked_for_are_fetched(view: Table, copies: Path) -> None:
    opened = open_view(view, [1])
    assert set(opened.identity) == {2}
    [file] = copies.rglob("*.arrow")
    assert file.stem == view.manifest.shards[1].sha256


@contextmanager
def changed_shard(view: Table) -> Iterator[None]:
    """Within the block, the last byte of the first shard is changed."""
    filesystem, path = open_root(join(view.path, view.manifest.shards[0].file))
    with filesystem.open_input_stream(path) as stream:
        whole = stream.read()
    with filesystem.open_output_stream(path) as stream:
        stream.write(whole[:-1] + b"?")
    try:
        yield
    finally:
        with filesystem.open_output_stream(path) as stream:
            stream.write(whole)


def test_changed_bytes_are_neither_stored_nor_used(view: Table, catalog: str, copies: Path) -> None:
    with changed_shard(view):
        with pytest.raises(CatalogError, match=r"shard-00000\.arrow has SHA-256 .* its bytes changed"):
            open_view(view)
        assert not list(copies.rglob("*.arrow"))
        assert not list(copies.rglob("*.partial"))
        [fault] = verify(catalog, "small").errors
        assert fault.shard == "shard-00000.arrow"
    assert verify(catalog, "small").errors == ()


def test_folder_that_cannot_hold_copies_is_named(
    view: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(local_copies.FOLDER_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(
        CatalogError, match="name another folder in the environment variable DATA_CATALOG_CACHE"
    ):
        open_view(view)


def test_manifests_hold_no_credentials(view: Table, catalog: str) -> None:
    filesystem, root = open_root(catalog)
    files = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    manifests = [info.path for info in files if info.base_name == "manifest.json"]
    assert len(manifests) == 5
    for path in manifests:
        with filesystem.open_input_stream(path) as stream:
            assert S3_SECRET.encode() not in stream.read()
    assert not [info.path for info in files if info.base_name.endswith(".partial")]


def test_command_line_takes_a_uri(view: Table, catalog: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "small", "--catalog", catalog, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["artifacts"]["view train"]["digest"] == view.digest
    assert shown["artifacts"]["view train"]["path"] == join(catalog, "small", "view", view.manifest.key)


def test_images_read_from_object_storage_are_the_files(view: Table, catalog: str, source: Path) -> None:
    [samples, *_] = list_tables(catalog, "small")
    row = samples.read().slice(0, 1).to_pylist()[0]
    split, name = row["sample_id"].split("/")
    data = (source / "RGBNT201" / split / "RGB" / f"{name}.jpg").read_bytes()
    assert row["rgb"] == data
    with Image.open(io.BytesIO(row["tir"])) as image:
        assert image.size == (WIDTH, HEIGHT)


def test_of_two_processes_one_builds_and_both_get_the_table(
    object_storage: Callable[[str], str], tmp_path: Path
) -> None:
    catalog = object_storage("two")
    processes = [slow_build.start(catalog, 0.3) for _ in range(2)]
    reports = [json.loads(process.communicate(timeout=100)[0]) for process in processes]
    assert sorted(report["reused"] for report in reports) == [False, True]
    assert {report["digest"] for report in reports} == {slow_build.build(tmp_path, 0).digest}
    [table] = list_tables(catalog, "slow")
    filesystem, folder = open_root(table.path)
    assert set(list_files(filesystem, folder)) == {
        "manifest.json",
        *(shard.file for shard in table.manifest.shards),
    }


def test_partial_files_of_killed_writers_are_removed(object_storage: Callable[[str], str]) -> None:
    filesystem, folder = open_root(join(object_storage("partial"), "table"))
    for name in (".shard-00000.parquet.0123.partial", "shard-00001.parquet"):
        with filesystem.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(b"left")
    remove_partial_files(filesystem, folder)
    assert set(list_files(filesystem, folder)) == {"shard-00001.parquet"}


def test_server_that_does_not_answer_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        query = urlencode({"endpoint_override": f"127.0.0.1:{unused.getsockname()[1]}", "scheme": "http"})
        with pytest.raises(CatalogError, match=r"lab/catalogs.* cannot be reached .* check its address"):
            list_datasets(f"s3://{BUCKET}/catalogs?{query}&region=us-east-1")


def test_bucket_that_is_not_there_is_named(catalog: str, source: Path) -> None:
    nowhere = catalog.replace(f"s3://{BUCKET}/", "s3://nobodys-bucket/")
    with pytest.raises(CatalogError, match="nobodys-bucket"):
        ingest(source, nowhere, "small", IngestSettings(samples_per_shard=28))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hidden@bucket/catalog",
        "s3://key:hidden@bucket?scheme=http",
        "s3://hidden@bucket/catalog",
        "s3://bucket/catalog?secret_key=hidden",
        "gs://key:hidden@bucket/catalog",
        "abfss://container:hidden@account.dfs.core.windows.net/catalog",
        "abfss://container@account.dfs.core.windows.net/catalog?client_id=me&client_secret=hidden",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(CatalogError, match=r"holds credentials.*AWS_ACCESS_KEY_ID") as error:
        open_root(uri)
    assert "hid" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("gs://anonymous@bucket/catalog", "bucket/catalog"),
        ("abfss://container@account.dfs.core.windows.net/catalog", "container/catalog"),
    ],
)
def test_user_without_a_password_is_no_credential(uri: str, path: str) -> None:
    assert open_root(uri)[1] == path


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "s3://[bad/x",
            r"s3://\[bad/x cannot be opened \(Invalid IPv6 URL\); give a folder or a URI",
        ),
        (
            "s3://bucket:abc/x?region=hidden",
            r"s3://bucket:abc/x cannot be opened \(.*'s3://bucket:abc/x'",
        ),
        ("s3://bucket:99999/x", "s3://bucket:99999/x cannot be opened"),
        ("s3://key:hid/den@bucket/x", r"s3://\.\.\.@bucket/x cannot be opened"),
        ("s3://key:hid?den@bucket/x", r"s3://\.\.\.@bucket/x cannot be opened"),
        (
            "s3://bucket/x?colour=hidden",
            r"s3://bucket/x cannot be opened \(Unexpected query parameter",
        ),
    ],
)
def test_uri_that_cannot_be_opened_is_named_without_its_query(uri: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message) as error:
        open_root(uri)
    assert "hid" not in str(error.value)


@pytest.mark.parametrize(
    ("root", "joined"),
    [
        ("a/b", "a/b/x/y"),
        ("a/b/", "a/b/x/y"),
        ("s3://a/b", "s3://a/b/x/y"),
        ("s3://a/b/?scheme=http", "s3://a/b/x/y?scheme=http"),
        ("what?/b", "what?/b/x/y"),
    ],
)
def test_query_of_a_uri_stays_at_its_end(root: str, joined: str) -> None:
    assert join(root, "x", "y") == joined
