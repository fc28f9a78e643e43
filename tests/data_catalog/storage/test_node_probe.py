"""What a node says of the folders that it is asked for; `tests/two_hosts` asks real nodes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from data_catalog.errors import CatalogError
from data_catalog.storage import node_probe
from data_catalog.storage.folders import Folder
from data_catalog.storage.node_probe import NeededFolder, check_nodes

NAME = ".probe-driver"


@pytest.fixture(params=["disk", "object storage"])
def needed(
    request: pytest.FixtureRequest, tmp_path: Path, object_storage: Callable[[str], str]
) -> NeededFolder:
    """A folder with the file of the driver."""
    uri = str(tmp_path / "runs") if request.param == "disk" else object_storage(f"probe-{tmp_path.name}")
    Folder(uri).write(NAME, NAME)
    return NeededFolder("workspace", uri)


def look(*folders: NeededFolder, expected: tuple[str, ...] = ()) -> list[str]:
    return node_probe._look(f"{NAME}-1", NAME, folders, [list(expected)] * len(folders))


def test_folder_that_a_node_sees_is_left_as_it_was(needed: NeededFolder) -> None:
    assert look(needed) == [""]
    assert list(Folder(needed.location).list_files()) == [NAME]


def test_folder_without_the_file_is_another_one(needed: NeededFolder, tmp_path: Path) -> None:
    Folder(tmp_path / "same name").write(NAME, "of another driver")
    others = [NeededFolder("workspace", str(tmp_path / name)) for name in ("nowhere", "same name")]
    assert look(*others, needed) == ["unseen", "unseen", ""]
    assert not (tmp_path / "nowhere").exists()


def test_catalog_that_is_only_read_has_the_same_folders(needed: NeededFolder) -> None:
    Folder(needed.location).write("people/manifest.json", "{}")
    catalog = NeededFolder("catalog", needed.location, is_written=False)
    assert look(catalog, expected=("people",)) == [""]
    assert look(catalog, expected=("people", "vehicles")) == ["unseen"]


def test_bucket_that_a_node_cannot_use_is_named_with_the_reason(object_storage: Callable[[str], str]) -> None:
    nowhere = object_storage("x").replace("s3://lab/", "s3://nobodys/")
    (reason,) = look(NeededFolder("storage", nowhere))
    assert "bucket nobodys of s3://nobodys does not exist" in reason


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"second (10.0.0.2)": "unseen"},
            r"workspace /runs is not shared by the nodes of the Ray cluster: second \(10\.0\.0\.2\) does not "
            r"see what .*; give --workspace a location that all nodes reach .* s3://bucket/runs, or a folder",
        ),
        (
            {"second": "denied", "third": "unseen", "fourth": "unseen"},
            r"is not shared .*: third, fourth do not see",
        ),
        ({"second": "no rights"}, r"workspace /runs cannot be used on node second: no rights"),
    ],
)
def test_refusal_names_nodes_and_what_to_do(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        node_probe._judge(NeededFolder("workspace", "/runs"), wrong)


def test_one_node_is_not_asked(ray_session: None, tmp_path: Path) -> None:
    check_nodes([NeededFolder("workspace", str(tmp_path / "new"))])
    assert not (tmp_path / "new").exists()


def test_node_of_this_process_sees_its_own_files(ray_session: None, tmp_path: Path) -> None:
    assert node_probe.nodes_with(tmp_path) == {ray.get_runtime_context().get_node_id()}


def test_copy_with_its_times_is_the_same_folder_and_a_new_one_is_not(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "images" / f"person {number}").mkdir(parents=True)
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    times = node_probe._times_of_change(tmp_path / "images")
    assert [name for name, _ in times] == [".", "person 0", "person 1", "person 2"]
    assert node_probe._times_of_change(tmp_path / "copy") == times
    (tmp_path / "copy" / "person 1" / "new.jpg").touch()
    assert node_probe._times_of_change(tmp_path / "copy") != times
    assert node_probe._times_of_change(tmp_path / "nowhere") == []
