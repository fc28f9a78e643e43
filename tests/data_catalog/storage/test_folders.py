"""A folder behaves in the same way on a disk and in object storage."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from data_catalog.errors import CatalogError
from data_catalog.storage import local_copies
from data_catalog.storage.filesystems import ONE_UPLOAD_BYTES
from data_catalog.storage.folders import Folder
from tests.conftest import S3_SECRET


@pytest.fixture(params=["disk", "object storage"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, object_storage: Callable[[str], str]) -> Folder:
    """A folder that does not exist yet."""
    if request.param == "disk":
        return Folder(tmp_path / "there" / "folder")
    return Folder(object_storage(f"folders-{tmp_path.name}")) / "folder"


def test_folder_that_does_not_exist_is_empty(folder: Folder) -> None:
    assert (folder.list_files(), folder.list_folders()) == ({}, [])
    assert not folder.has_file("a")
    assert not folder.parent.has_folder("folder")
    with pytest.raises(FileNotFoundError):
        folder.read("a")


@pytest.mark.parametrize("size", [3, ONE_UPLOAD_BYTES + 1])
def test_what_is_written_is_read_back_and_replaced_as_a_whole(folder: Folder, size: int) -> None:
    for content in (b"a" * size, b"b" * (size - 1)):
        folder.write("in/file.txt", content)
        assert folder.read("in/file.txt") == content
    folder.write("text", "é")
    assert folder.read("text").decode() == "é"
    assert list(folder.list_files()) == ["text"]
    assert folder.list_folders() == ["in"]
    assert list((folder / "in").list_files()) == ["file.txt"]
    assert folder.has_file("text")
    assert folder.has_folder("in")
    assert not folder.has_folder("text")
    assert not folder.has_file("in")


def test_names_and_parents_are_those_of_paths(folder: Folder) -> None:
    child = folder / "child"
    assert (child.name, folder.name) == ("child", "folder")
    assert child.parent == folder
    assert Folder(child) == child != folder
    assert Folder(folder.file("child")) == child


def test_file_for_a_library_that_needs_a_path_has_its_name_and_content(folder: Folder) -> None:
    folder.write("in/file.txt", "content")
    with folder.local_file("in/file.txt") as path:
        assert (path.name, path.read_text()) == ("file.txt", "content")


def test_other_processes_get_no_credentials(folder: Folder) -> None:
    folder.write("file", "content")
    sent = pickle.dumps(folder)
    assert S3_SECRET.encode() not in sent
    assert pickle.loads(sent).read("file") == b"content"


@pytest.mark.parametrize(
    ("location", "parent"),
    [
        ("s3://lab/runs/?region=us-east-1", "s3://lab?region=us-east-1"),
        ("s3://lab?region=us-east-1", "s3://lab?region=us-east-1"),
        ("/data/runs/", "/data"),
        ("/data", "/"),
    ],
)
def test_slash_at_the_end_changes_nothing_and_nothing_is_above_a_bucket(location: str, parent: str) -> None:
    assert Folder(location) == Folder(location.replace("/?", "?").rstrip("/"))
    assert Folder(location).parent.location == parent


def test_uri_of_this_machines_disk_is_a_path(tmp_path: Path) -> None:
    assert Folder(tmp_path.as_uri()) == Folder(tmp_path)
    assert Folder(tmp_path).path == tmp_path


def test_folder_in_object_storage_has_no_path_but_a_place_for_files_of_this_machine(
    object_storage: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(local_copies.FOLDER_VARIABLE, str(tmp_path))
    one, other = (Folder(object_storage(name)) / "runs" for name in ("one", "other"))
    with pytest.raises(CatalogError, match="is not on a disk of this machine"):
        _ = one.path
    assert local_copies.local_files(one) == local_copies.local_files(one)
    assert local_copies.local_files(one) != local_copies.local_files(other)
    assert local_copies.local_files(one).is_relative_to(tmp_path)
    assert local_copies.local_files(Folder(tmp_path)) == tmp_path
