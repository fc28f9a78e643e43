"""Files of other image types: the message says that they lie there, and what to do."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from data_catalog.__main__ import main
from data_catalog.formats import find_format
from data_catalog.samples.ingestion import IngestSettings, ingest
from tests.data_catalog.folders import image_path, sample_ids
from tests.data_catalog.vehicle_folders import msvr310_path, write_msvr310, write_rgbnt100

CONVERT = "convert it to JPEG of quality 95 or more"


@pytest.mark.parametrize(
    ("ending", "remedy"),
    [(".png", CONVERT), (".tiff", CONVERT), (".TIF", CONVERT), (".bmp", CONVERT), (".jpeg", "rename it")],
)
@pytest.mark.parametrize("modality", [0, 2])
def test_image_of_another_ending_is_named_where_it_is_missed(
    own_source: Path, tmp_path: Path, ending: str, remedy: str, modality: int
) -> None:
    sample_id = sample_ids()[0]
    path = image_path(own_source, sample_id, modality)
    other = path.with_suffix(ending)
    with Image.open(path) as image:
        image.save(other)
    path.unlink()
    name, folder, missing = path.stem, *(("RGB", "RGB") if modality == 0 else ("TI", "TIR"))
    table = ingest(own_source, tmp_path / "catalog", "small", IngestSettings())
    found = {fault["file"]: fault["reason"] for fault in table.statistics["quarantined"]}
    why = f"ends in {ending}, expected .jpg: {remedy}"
    beside = "NI" if modality == 0 else "RGB"
    stray = f"test/{folder}/{name}{ending}"
    assert found == {
        stray: why,
        f"test/{beside}/{name}.jpg": f"has no {missing} image of the same name: {stray} {why}",
    }
    assert len(table) == len(sample_ids()) - 1


def test_file_that_is_nowhere_is_missing_still(own_source: Path, tmp_path: Path) -> None:
    path = image_path(own_source, sample_ids()[0], 0)
    path.unlink()
    # One of another split, one of another sample, and a picture beside sound files of its name.
    other = image_path(own_source, "train/000001_cam1_0_00", 0)
    for stray in (
        other.with_name(f"{path.stem}.png"),
        path.with_name("000099_cam1_0_00.png"),
        other.with_suffix(".png"),
    ):
        Image.new("RGB", (4, 4)).save(stray)
    table = ingest(own_source, tmp_path / "catalog", "small", IngestSettings())
    found = {fault["file"]: fault["reason"] for fault in table.statistics["quarantined"]}
    assert found[f"test/NI/{path.stem}.jpg"] == "has no RGB image of the same name"
    assert len(found) == 4
    assert len(table) == len(sample_ids()) - 1


def test_vehicle_layouts_name_it_too(tmp_path: Path) -> None:
    root = write_msvr310(tmp_path)
    thermal = msvr310_path(root, "bounding_box_train", "0001_s001_v0_000", "th")
    shutil.move(thermal, thermal.with_suffix(".webp"))
    [first, second] = ingest(root, tmp_path / "c", "cars", IngestSettings(format="msvr310")).statistics[
        "quarantined"
    ]
    stray = "bounding_box_train/0001/th/0001_s001_v0_000.webp"
    assert second["file"].startswith("bounding_box_train/0001/vis/") or first["file"] == stray
    reasons = {fault["file"]: fault["reason"] for fault in (first, second)}
    assert reasons.pop(stray) == f"ends in .webp, expected .jpg: {CONVERT}"
    assert list(reasons.values()) == [
        f"has no TIR image of the same name: {stray} ends in .webp, expected .jpg: {CONVERT}"
    ]
    joined = write_rgbnt100(tmp_path) / "rgbir" / "query" / "0501_c0001_000.jpg"
    shutil.move(joined, joined.with_suffix(".png"))
    [rejected] = find_format("rgbnt100").read(tmp_path).rejected
    assert rejected.reason == f"ends in .png, expected .jpg: {CONVERT}"


def test_folder_of_another_type_alone_says_so_in_its_error(own_source: Path, tmp_path: Path) -> None:
    for sample_id in sample_ids():
        for modality in range(3):
            path = image_path(own_source, sample_id, modality)
            path.rename(path.with_suffix(".png"))
    with pytest.raises(
        ValueError, match=r"holds no image .*RGB/0000\S*\.png ends in \.png, expected \.jpg: convert"
    ):
        ingest(own_source, tmp_path / "catalog", "small", IngestSettings())


def test_very_many_foreign_files_take_few_lines(
    own_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image_path(own_source, sample_ids()[0], 0).parent
    for number in range(3000):
        (folder / f"thumbnail{number}.txt").touch()
    arguments = ["ingest", "--source", str(own_source), "--catalog", str(tmp_path / "catalog")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 50
    assert any(line.strip() == "and 2990 more; --json names every one" for line in lines)
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["quarantined"]) == 3000


def test_people_are_shown_the_cameras_of_the_files(
    own_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(*arguments: str) -> list[str]:
        assert main([*arguments, "--catalog", str(tmp_path / "catalog")]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    assert "cameras 1, 2" in lines("ingest", "--source", str(own_source))
    masks = lines("masks")
    start = masks.index("by_camera")
    assert [line.split()[0] for line in masks[start + 1 : start + 3]] == ["1", "2"]
    # Programs read `camera_id`, which counts from 0, and what it starts with in the files.
    assert main(["masks", "--catalog", str(tmp_path / "catalog"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (list(found["sources_by_camera"]), found["first_camera"]) == (["0", "1"], 1)
    vehicles = lines("ingest", "--source", str(write_msvr310(tmp_path)), "--format", "msvr310")
    assert "cameras 0, 1, 2, 3, 4, 7" in vehicles
