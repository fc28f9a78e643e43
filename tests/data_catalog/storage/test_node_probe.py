"""What a node says of the places that it is asked for; `tests/two_hosts` asks real nodes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_catalog.errors import CatalogError
from data_catalog.storage import node_probe
from data_catalog.storage.folders import Folder
from data_catalog.storage.node_probe import Place, check_nodes

NAME = ".probe-driver"


@pytest.fixture(params=["disk", "object storage"])
def place(request: pytest.FixtureRequest, tmp_path: Path, object_storage: Callable[[str], str]) -> Place:
    """A place with the file of the driver."""
    uri = str(tmp_path / "runs") if request.param == "disk" else object_storage(f"probe-{tmp_path.name}")
    Folder(uri).write(NAME, NAME)
    return Place("workspace", uri)


def look(*places: Place, expected: tuple[str, ...] = ()) -> list[str]:
    return node_probe._look(f"{NAME}-1", NAME, places, [list(expected)] * len(places))


def test_place_that_a_node_sees_is_left_as_it_was(place: Place) -> None:
    assert look(place) == [""]
    assert list(Folder(place.location).list_files()) == [NAME]


def test_place_without_the_file_is_another_one(place: Place, tmp_path: Path) -> None:
    Folder(tmp_path / "same name").write(NAME, "of another driver")
    others = [Place("workspace", str(tmp_path / name)) for name in ("nowhere", "same name")]
    assert look(*others, place) == ["unseen", "unseen", ""]
    assert not (tmp_path / "nowhere").exists()


def test_catalog_that_is_only_read_has_the_same_folders(place: Place) -> None:
    Folder(place.location).write("people/manifest.json", "{}")
    catalog = Place("catalog", place.location, is_written=False)
    assert look(catalog, expected=("people",)) == [""]
    assert look(catalog, expected=("people", "vehicles")) == ["unseen"]


def test_bucket_that_a_node_cannot_use_is_named_with_the_reason(object_storage: Callable[[str], str]) -> None:
    nowhere = object_storage("x").replace("s3://lab/", "s3://nobodys/")
    (reason,) = look(Place("storage", nowhere))
    assert "bucket nobodys of s3://nobodys does not exist" in reason


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"second (10.0.0.2)": "unseen"},
            r"workspace /runs is not shared by the nodes of the Ray cluster: second \(10\.0\.0\.2\) does not "
            r"see what .*; give --workspace a place that all nodes reach .* s3://bucket/runs, or a folder",
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
        node_probe._judge(Place("workspace", "/runs"), wrong)


def test_one_node_is_not_asked(ray_session: None, tmp_path: Path) -> None:
    check_nodes([Place("workspace", str(tmp_path / "new"))])
    assert not (tmp_path / "new").exists()
