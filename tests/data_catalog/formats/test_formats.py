import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_catalog.cards import card_names, load_card
from data_catalog.errors import CatalogError
from data_catalog.formats import FORMATS, SIDE_BY_SIDE, Listing, rgbnt100
from data_catalog.samples.images import decode_triplets
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.samples.samples_maker import sample_digest
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import open_view
from tests.data_catalog.folders import image_path, sample_ids
from tests.data_catalog.vehicle_folders import (
    HEIGHT,
    MSVR310,
    RGBNT100,
    VEHICLE_FOLDERS,
    WIDTH,
    msvr310_path,
    write_image,
    write_msvr310,
    write_rgbnt100,
    write_side_by_side,
)


# The name contains the folder names of a layout, which must not confuse any path.
@pytest.fixture
def vehicles(tmp_path: Path) -> Path:
    return tmp_path / "train_bounding_box_train_rgbir"


def list_source(name: str, source: Path) -> Listing:
    return FORMATS[name].list_samples(source)


def reasons(listing: Listing) -> dict[str, str]:
    return {file.file: file.reason for file in listing.rejected}


@pytest.mark.parametrize("below", ["", "RGBNT100"])
def test_rgbnt100_names_say_split_identity_camera_and_part(vehicles: Path, below: str) -> None:
    root = write_rgbnt100(vehicles)
    listing = list_source("rgbnt100", vehicles / below)
    assert listing.root == root
    assert [sample.sample_id for sample in listing.samples] == sorted(
        [f"train/{name}" for name in RGBNT100["bounding_box_train"]]
        + [f"test/{name}" for name in {*RGBNT100["bounding_box_test"], *RGBNT100["query"]}]
    )
    for sample in listing.samples:
        name = sample.sample_id.split("/")[1]
        assert (sample.identity, sample.camera_id) == (int(name[:4]), int(name[6:10]) - 1)
        assert sample.scene_id == -1
        assert sample.is_query == (name in RGBNT100["query"])
        assert sample.is_gallery == (name in RGBNT100["bounding_box_test"])
        assert (root / sample.files[SIDE_BY_SIDE]).is_file()
    alone = next(sample for sample in listing.samples if not sample.is_gallery and sample.is_query)
    assert alone.files == {SIDE_BY_SIDE: "rgbir/query/0502_c0004_007.jpg"}


def test_msvr310_names_say_split_identity_view_scene_and_part(vehicles: Path) -> None:
    root = write_msvr310(vehicles)
    listing = list_source("msvr310", vehicles)
    names = {*MSVR310["bounding_box_test"], *MSVR310["query3"]}
    assert [sample.sample_id for sample in listing.samples] == sorted(
        [f"train/{name}" for name in MSVR310["bounding_box_train"]] + [f"test/{name}" for name in names]
    )
    for sample in listing.samples:
        name = sample.sample_id.split("/")[1]
        assert (sample.identity, sample.scene_id, sample.camera_id) == (
            int(name[:4]),
            int(name[6:9]),
            int(name[11]),
        )
        assert sample.is_query == (name in MSVR310["query3"])
        assert sample.is_gallery == (name in MSVR310["bounding_box_test"])
        folder = "bounding_box_train" if sample.sample_id.startswith("train") else "bounding_box_test"
        folder = folder if sample.is_gallery or folder.endswith("train") else "query3"
        expected = [msvr310_path(root, folder, name, modality) for modality in VEHICLE_FOLDERS]
        assert [root / sample.files[modality] for modality in ("RGB", "NIR", "TIR")] == expected


def test_listing_does_not_depend_on_the_order_of_the_folder(
    vehicles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_msvr310(vehicles)
    before = list_source("msvr310", vehicles)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert list_source("msvr310", vehicles) == before


def test_junk_and_background_are_left_out_with_a_reason(vehicles: Path, own_source: Path) -> None:
    rng = np.random.default_rng(1)
    test = write_rgbnt100(vehicles) / "rgbir" / "bounding_box_test"
    write_side_by_side(test / "-1_c0002_000.jpg", rng)
    write_side_by_side(test / "0000_c0002_000.jpg", rng)
    assert reasons(list_source("rgbnt100", vehicles)) == {
        "rgbir/bounding_box_test/-1_c0002_000.jpg": "has identity -1, which marks junk; it is left out",
        "rgbir/bounding_box_test/0000_c0002_000.jpg": "has identity 0, which marks background without an "
        "object; it is left out",
    }
    root = write_msvr310(vehicles)
    write_image(root / "bounding_box_test" / "-1" / "vis" / "-1_s001_v0_000.jpg", rng)
    assert "junk" in reasons(list_source("msvr310", vehicles))["bounding_box_test/-1/vis/-1_s001_v0_000.jpg"]
    person = image_path(own_source, sample_ids()[0], 0)
    shutil.copy(person, person.with_name("000000_cam1_0_00.jpg"))
    assert "identity 0" in reasons(list_source("rgbnt201", own_source))["test/RGB/000000_cam1_0_00.jpg"]


@pytest.mark.parametrize(
    "name",
    [
        "0501_c0000_000.jpg",
        "501_c0001_000.jpg",
        "0501_c0001.jpg",
        "0501_c99999999999_000.jpg",
        "0501_c0001_0.jpg.bak",
        "notes.png",
    ],
)
def test_bad_names_are_left_out(vehicles: Path, name: str) -> None:
    (write_rgbnt100(vehicles) / "rgbir" / "query" / name).touch()
    [(file, reason)] = reasons(list_source("rgbnt100", vehicles)).items()
    assert file == f"rgbir/query/{name}"
    assert reason == "is not a name like 0548_c0002_000.jpg (four digits of identity, camera from 1)"


def test_bad_names_of_msvr310_are_left_out(vehicles: Path) -> None:
    root = write_msvr310(vehicles)
    strange = root / "bounding_box_train" / "0001" / "vis" / "0001_s001_v8_000.jpg"
    strange.touch()
    (root / "query3" / "list.txt").touch()
    (root / "query3" / "0042").mkdir()
    assert reasons(list_source("msvr310", vehicles)) == {
        "bounding_box_train/0001/vis/0001_s001_v8_000.jpg": "is not a name like 0019_s012_v0_000.jpg (four "
        "digits of identity, three of scene, view 0 to 7)",
        "query3/list.txt": "lies in no folder of a vehicle",
        "query3/0042": "holds none of the folders vis, ni, th",
    }


def test_name_that_is_no_utf8_can_be_printed(vehicles: Path) -> None:
    folder = write_rgbnt100(vehicles) / "rgbir" / "query"
    with open(os.fsencode(folder) + b"/0501_\xff.jpg", "wb"):  # noqa: PTH123
        pass
    [file] = reasons(list_source("rgbnt100", vehicles))
    assert file == "rgbir/query/0501_\\udcff.jpg"


def test_of_two_endings_the_published_one_is_kept(vehicles: Path) -> None:
    folder = write_rgbnt100(vehicles) / "rgbir" / "bounding_box_train"
    shutil.copy(folder / "0001_c0001_000.jpg", folder / "0001_c0001_000.JPG")
    (folder / "0001_c0002_000.jpg").rename(folder / "0001_c0002_000.JPG")
    listing = list_source("rgbnt100", vehicles)
    assert reasons(listing) == {
        "rgbir/bounding_box_train/0001_c0001_000.JPG": "has the same name as "
        "rgbir/bounding_box_train/0001_c0001_000.jpg; it is left out, so keep one of the two"
    }
    files = {sample.sample_id: sample.files[SIDE_BY_SIDE] for sample in listing.samples}
    assert files["train/0001_c0001_000"].endswith(".jpg")
    assert files["train/0001_c0002_000"].endswith(".JPG")


def test_file_in_the_folder_of_another_vehicle_is_left_out(vehicles: Path) -> None:
    root = write_msvr310(vehicles)
    part = root / "bounding_box_train"
    shutil.copytree(part / "0001", part / "0004")
    shutil.copytree(part / "0003", part / "3")
    listing = list_source("msvr310", vehicles)
    assert len(listing.samples) == 9
    assert len({sample.sample_id for sample in listing.samples}) == 9
    found = reasons(listing)
    assert len(found) == 2 * 6
    assert found["bounding_box_train/0004/ni/0001_s002_v7_000.jpg"] == (
        "has identity 1 but lies in the folder of vehicle '0004'; it is left out"
    )
    assert found["bounding_box_train/3/th/0003_s001_v1_000.jpg"] == (
        "has the same name as bounding_box_train/0003/th/0003_s001_v1_000.jpg; keep one of the two; "
        "it is left out"
    )


def test_vehicle_without_a_modality_is_quarantined(vehicles: Path, tmp_path: Path) -> None:
    root = write_msvr310(vehicles)
    shutil.rmtree(root / "bounding_box_train" / "0003" / "th")
    table = ingest(root, tmp_path / "catalog", "cars", IngestSettings(format="msvr310"))
    assert table.statistics["quarantined"] == [
        {
            "file": f"bounding_box_train/0003/vis/{name}.jpg",
            "reason": "has no TIR image of the same name",
        }
        for name in MSVR310["bounding_box_train"][2:]
    ]
    assert table.statistics["splits"]["train"] == {"samples": 2, "identities": 1}
    rows = table.read(["sample_id", "side_by_side", "rgb"]).to_pylist()
    assert all(row["side_by_side"] is None and row["rgb"][:2] == b"\xff\xd8" for row in rows)


def test_links_in_a_circle_end(vehicles: Path, tmp_path: Path) -> None:
    root = write_msvr310(vehicles)
    (root / "bounding_box_train" / "0001" / "vis" / "around").symlink_to(root)
    self_link = root / "bounding_box_train" / "0001" / "vis" / "0001_s009_v0_000.jpg"
    self_link.symlink_to(self_link)
    table = ingest(root, tmp_path / "catalog", "cars", IngestSettings(format="msvr310"))
    [fault] = [fault for fault in table.statistics["quarantined"] if "cannot" in fault["reason"]]
    assert fault == {
        "file": "bounding_box_train/0001/vis/0001_s009_v0_000.jpg",
        "reason": "cannot be read (Too many levels of symbolic links)",
    }
    assert len(table) == 9
    folder = root / "bounding_box_test" / "0019" / "ni"
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    with pytest.raises(CatalogError, match=r"0019/ni cannot be read \(Too many levels of symbolic links\)"):
        list_source("msvr310", vehicles)


def test_unreadable_folder_is_named(vehicles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query = write_rgbnt100(vehicles) / "rgbir" / "query"
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path == query:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CatalogError, match=r"rgbir/query cannot be read \(Permission denied\); the RGBNT100"):
        list_source("rgbnt100", vehicles)
    monkeypatch.undo()
    shutil.rmtree(query)
    query.touch()
    with pytest.raises(CatalogError, match=r"rgbir/query cannot be read \(Not a directory\)"):
        list_source("rgbnt100", vehicles)


@pytest.mark.parametrize(
    ("name", "folder", "needed"),
    [
        ("rgbnt100", "rgbir/bounding_box_train", "training images"),
        ("rgbnt100", "rgbir/query", "queries"),
        ("rgbnt100", "rgbir/bounding_box_test", "gallery"),
        ("msvr310", "query3", "queries"),
    ],
)
def test_empty_part_is_named(vehicles: Path, name: str, folder: str, needed: str) -> None:
    root = (write_rgbnt100 if name == "rgbnt100" else write_msvr310)(vehicles)
    shutil.rmtree(root / folder)
    (root / folder).mkdir()
    with pytest.raises(CatalogError, match=rf"folder {folder} holds no image; put the {needed} there"):
        list_source(name, vehicles)
    (root / folder / "notes.txt").touch()
    with pytest.raises(CatalogError, match=rf"\(first of the files: {folder}/notes.txt (is not|lies in)"):
        list_source(name, vehicles)


@pytest.mark.parametrize(("name", "root"), [("rgbnt100", "RGBNT100"), ("msvr310", "MSVR310")])
def test_source_that_is_another_layout_says_what_to_give(own_source: Path, name: str, root: str) -> None:
    with pytest.raises(CatalogError, match=f"give the folder {root} or the one it lies in"):
        list_source(name, own_source)


def test_side_by_side_file_is_kept_whole_and_cut_when_decoded(vehicles: Path, tmp_path: Path) -> None:
    root = write_rgbnt100(vehicles)
    part = root / "rgbir" / "bounding_box_train"
    rng = np.random.default_rng(2)
    write_side_by_side(part / "0002_c0002_000.jpg", rng, width=WIDTH // 2)
    Image.new("RGB", (3 * WIDTH + 1, HEIGHT)).save(part / "0002_c0002_001.jpg")
    table = ingest(root, tmp_path / "catalog", "cars", IngestSettings(format="rgbnt100"))
    assert {fault["file"]: fault["reason"] for fault in table.statistics["quarantined"]} == {
        "rgbir/bounding_box_train/0002_c0002_000.jpg": f"is 3 times {HEIGHT}x{WIDTH // 2} (height x width), "
        f"expected {HEIGHT}x{WIDTH}",
        "rgbir/bounding_box_train/0002_c0002_001.jpg": f"is {3 * WIDTH + 1} pixels wide, expected 3 "
        "images of one width side by side",
    }
    rows = table.read()
    assert rows["rgb"].null_count == rows["nir"].null_count == rows["tir"].null_count == len(table) == 9
    half = (HEIGHT // 2, WIDTH // 2)
    for row, triplet, small in zip(
        rows.to_pylist(), decode_triplets(rows), decode_triplets(rows, half), strict=True
    ):
        folder = "query" if not row["is_gallery"] and row["is_query"] else "bounding_box_test"
        split, name = row["sample_id"].split("/")
        path = root / "rgbir" / ("bounding_box_train" if split == "train" else folder) / f"{name}.jpg"
        assert row["side_by_side"] == path.read_bytes()
        assert row["digest"] == sample_digest(path.read_bytes())
        assert (row["height"], row["width"]) == (HEIGHT, WIDTH)
        with Image.open(path) as joined:
            for modality in range(3):
                one = joined.crop((modality * WIDTH, 0, (modality + 1) * WIDTH, HEIGHT))
                assert np.array_equal(triplet[modality], np.asarray(one))
                resized = one.resize(half[::-1], Image.Resampling.BICUBIC)
                assert np.array_equal(small[modality], np.asarray(resized))
    settings = ViewSettings(split="train", height=HEIGHT, width=WIDTH)
    view = open_view(make_view(table, None, None, settings))
    assert len(view) == 4
    assert np.array_equal(
        view.batch(np.arange(4)).pixels,
        np.stack(decode_triplets(rows.slice(5))).transpose(0, 1, 4, 2, 3),
    )


def test_formats_know_where_masks_and_captions_lie() -> None:
    people, cars, scenes = (FORMATS[name] for name in ("rgbnt201", "rgbnt100", "msvr310"))
    assert people.mask_files("train/000028_cam1_0_02") == (
        "train_171/mask/000028_cam1_0_02.npy",
        "train/mask/000028_cam1_0_02.npy",
    )
    assert cars.mask_files("test/0548_c0002_000") == (
        "mask/bounding_box_test/0548_c0002_000.npy",
        "mask/query/0548_c0002_000.npy",
        "mask/test/0548_c0002_000.npy",
    )
    assert (
        scenes.mask_files("train/0019_s012_v0_000")[0] == "mask/bounding_box_train/0019/0019_s012_v0_000.npy"
    )
    assert cars.caption_files("test") == {
        "": "rgbir/text/test.json",
        "RGB": "rgbir/text/test_RGB.json",
        "NIR": "rgbir/text/test_NI.json",
        "TIR": "rgbir/text/test_TI.json",
    }
    assert people.caption_files("train")[""] == scenes.caption_files("train")[""] == "text/train.json"


def test_every_published_format_has_a_card_of_its_layout() -> None:
    published = {name: layout for name, layout in FORMATS.items() if not layout.is_manifest}
    assert set(published) <= set(card_names())
    for name, source_format in published.items():
        card = load_card(name)
        assert card.format == name
        assert set(card.counts) <= set(source_format.split_folders)
        assert card.protocol.junk == ("scene" if name == "msvr310" else "camera")
        assert len(card.attributes) == (13 if card.kind == "person" else 6)
        assert card.citation
        assert "not part of this project" in card.licence
    counts = load_card("rgbnt100").counts
    assert sum(split.samples for split in counts.values()) == 17250
    assert rgbnt100.FORMAT.split_folders.keys() == counts.keys()
