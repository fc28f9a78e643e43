import errno
import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_catalog.errors import CatalogError
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.samples.source_images import image_size
from data_catalog.tables.table import list_tables
from tests.data_catalog.folders import HEIGHT, WIDTH, image_path, sample_ids


def encoded(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), file_format: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size).save(sink, format=file_format)
    return sink.getvalue()


def jpeg_bomb(height: int, width: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(encoded())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def test_rows_hold_the_original_bytes_and_the_labels_of_the_name(built: Any) -> None:
    rows = built.samples.read().to_pylist()
    assert [row["sample_id"] for row in rows] == sample_ids()
    assert [row["sample_index"] for row in rows] == list(range(len(rows)))
    for row in rows:
        split, name = row["sample_id"].split("/")
        files = [image_path(built.source, row["sample_id"], modality).read_bytes() for modality in range(3)]
        assert [row["rgb"], row["nir"], row["tir"]] == files
        joined = b"".join(len(data).to_bytes(8, "big") + data for data in files)
        assert row["digest"] == hashlib.sha256(joined).hexdigest()
        assert (row["identity"], row["camera_id"]) == (int(name[:6]), int(name[10]) - 1)
        assert (row["split"], row["scene_id"]) == (split, -1)
        assert row["is_query"] == row["is_gallery"] == (split != "train")
        assert (row["height"], row["width"]) == (HEIGHT, WIDTH)


def test_statistics_count_samples_and_identities(built: Any) -> None:
    assert built.samples.statistics == {
        "splits": {
            "test": {"samples": 8, "identities": 2},
            "train": {"samples": 12, "identities": 3},
            "val": {"samples": 8, "identities": 2},
        },
        "cameras": [0, 1],
        "quarantined": [],
    }


def test_no_shard_holds_two_splits(built: Any) -> None:
    for number in range(len(built.samples.manifest.shards)):
        assert len(set(built.samples.read_shard(number, ["split"])["split"].to_pylist())) == 1


def test_digest_and_key_depend_on_content_and_not_on_the_folder_or_times(
    built: Any, own_source: Path, tmp_path: Path
) -> None:
    settings = IngestSettings(samples_per_shard=3)
    os.utime(image_path(own_source, sample_ids()[0], 0), (1, 1))
    # The folder's parent and the folder itself name the same data set.
    elsewhere = ingest(own_source / "RGBNT201", tmp_path / "catalog", "other", settings)
    assert elsewhere.digest == built.samples.digest
    assert elsewhere.manifest.key == built.samples.manifest.key

    path = image_path(own_source, sample_ids()[0], 0)
    data = bytearray(path.read_bytes())
    # A byte of the header's density: the image decodes to the same pixels.
    data[15] ^= 1
    path.write_bytes(data)
    assert ingest(own_source, tmp_path / "catalog", "other", settings).digest != built.samples.digest


def test_ingesting_again_builds_nothing(built: Any) -> None:
    again = ingest(built.source, built.catalog, "small", IngestSettings(samples_per_shard=3))
    assert again.reused
    assert again.manifest == built.samples.manifest


def test_bad_files_go_to_quarantine_and_leave_gaps(built: Any, own_source: Path, tmp_path: Path) -> None:
    ids = sample_ids()
    paths = {number: image_path(own_source, ids[number], number % 3) for number in range(1, 11)}
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    paths[2].write_bytes(b"")
    paths[3].write_bytes(encoded(file_format="PNG"))
    paths[4].write_bytes(encoded(size=(WIDTH + 1, HEIGHT)))
    paths[5].write_bytes(encoded(mode="L"))
    paths[6].unlink()
    paths[8].write_bytes(b"no image at all")
    paths[9].write_bytes(jpeg_bomb(12_000, 8_000))
    paths[10].unlink()
    paths[10].symlink_to(paths[10].name)
    stray = own_source / "RGBNT201" / "train_171" / "NI" / "1_cam1.jpg"
    stray.write_bytes(encoded())
    (stray.parent / ".hidden").touch()
    (stray.parent / "folder.jpg").mkdir()

    table = ingest(own_source, tmp_path / "catalog", "small", IngestSettings(samples_per_shard=5))
    reasons = {fault["file"]: fault["reason"] for fault in table.statistics["quarantined"]}
    root = own_source / "RGBNT201"
    expected = {
        1: "cannot be decoded",
        2: "zero bytes",
        3: "is a PNG file, expected JPEG",
        4: f"is {HEIGHT}x{WIDTH + 1} (height x width), expected {HEIGHT}x{WIDTH}",
        5: "is greyscale",
        8: "is not an image",
        9: "decodes to far more than",
        10: "cannot be read (Too many levels of symbolic links)",
    }
    for number, reason in expected.items():
        assert reason in reasons.pop(str(paths[number].relative_to(root)))
    assert reasons.pop("train_171/NI/1_cam1.jpg").startswith("is not a name like 000028_cam1_0_02.jpg")
    [(file, reason)] = reasons.items()
    assert Path(file).stem == paths[6].stem
    assert reason == "has no RGB image of the same name"

    bad = {1, 2, 3, 4, 5, 6, 8, 9, 10}
    kept = [number for number in range(len(ids)) if number not in bad]
    rows = table.read(["sample_index", "sample_id"])
    assert rows["sample_index"].to_pylist() == kept
    assert rows["sample_id"].to_pylist() == [ids[number] for number in kept]


def test_pipe_goes_to_quarantine_without_waiting(own_source: Path, tmp_path: Path) -> None:
    path = image_path(own_source, sample_ids()[0], 0)
    path.unlink()
    os.mkfifo(path)
    table = ingest(own_source, tmp_path / "catalog", "small")
    [fault] = table.statistics["quarantined"]
    assert fault == {
        "file": str(path.relative_to(own_source / "RGBNT201")),
        "reason": "is no regular file but a pipe, a socket or a device, expected JPEG",
    }


def test_size_of_images_can_be_required_or_left_open(own_source: Path, tmp_path: Path) -> None:
    for modality in range(3):
        image_path(own_source, sample_ids()[0], modality).write_bytes(encoded(size=(WIDTH, HEIGHT // 2)))
    open_size = ingest(own_source, tmp_path / "catalog", "small", IngestSettings(size="any"))
    assert open_size.statistics["quarantined"] == []
    with pytest.raises(CatalogError, match="none of the 12 samples of split 'train' can be used"):
        ingest(own_source, tmp_path / "catalog", "small", IngestSettings(size=(HEIGHT // 2, WIDTH)))
    assert len(list_tables(tmp_path / "catalog", "small")) == 1


def test_reason_of_an_unusable_split_is_one_of_its_own(own_source: Path, tmp_path: Path) -> None:
    (own_source / "RGBNT201" / "test" / "NI" / "Thumbs.db").touch()
    for sample_id in sample_ids():
        if sample_id.startswith("train/"):
            image_path(own_source, sample_id, 0).write_bytes(b"")
    with pytest.raises(
        CatalogError, match=r"samples of split 'train' can be used \(first: train_171/RGB/.*zero"
    ):
        ingest(own_source, tmp_path / "catalog", "small")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(mode="CMYK"), "is CMYK"),
        (encoded(file_format="GIF"), "is a GIF file"),
        (encoded()[:20], "is not an image|cannot be decoded"),
        (jpeg_bomb(60_000, 60_000), "far more than"),
        (jpeg_bomb(9_000, 8_000), "has 72000000 pixels, expected at most 67108864"),
    ],
    ids=["cmyk", "gif", "header only", "bomb", "small bomb"],
)
def test_reason_names_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        image_size(data)


def test_sound_image_gives_height_and_width() -> None:
    assert image_size(encoded(size=(5, 7))) == (7, 5)


def test_file_that_could_not_be_read_is_tried_again(
    own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, read, access = image_path(own_source, sample_ids()[0], 1), Path.read_bytes, os.access

    def deny(path: Path) -> bytes:
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as rights:
        rights.setattr(Path, "read_bytes", deny)
        rights.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
        table = ingest(own_source, tmp_path, "small")
    [fault] = table.statistics["quarantined"]
    assert fault["reason"] == "cannot be read (Permission denied)"
    again = ingest(own_source, tmp_path, "small")
    assert not again.reused
    assert again.statistics["quarantined"] == []


def test_failing_disk_stops_the_ingest_and_leaves_no_trace(
    own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, read = image_path(own_source, sample_ids()[0], 1), Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == broken:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "read_bytes", fail)
        with pytest.raises(CatalogError, match=rf"{broken.name} cannot be read now \(Input/output error\)"):
            ingest(own_source, tmp_path / "catalog", "small")
    assert list_tables(tmp_path / "catalog", "small") == []
    assert ingest(own_source, tmp_path / "catalog", "small").statistics["quarantined"] == []


def test_images_that_were_cropped_one_by_one_may_have_any_size(own_source: Path, tmp_path: Path) -> None:
    for number, sample_id in enumerate(sample_ids()):
        for modality in range(3):
            image_path(own_source, sample_id, modality).write_bytes(encoded(size=(WIDTH + number, HEIGHT)))
    table = ingest(own_source, tmp_path / "catalog", "small")
    assert table.statistics["quarantined"] == []
    assert table.manifest.settings["size"] == "any"
    assert sorted(table.read(["width"])["width"].to_pylist()) == [WIDTH + n for n in range(len(table))]


def test_source_whose_name_is_not_utf8_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(CatalogError, match="the folder's name is not UTF-8"):
        ingest(folder, tmp_path, "small")


def test_missing_folders_are_named(own_source: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="holds no folder train_171"):
        ingest(tmp_path / "nowhere", tmp_path, "small")
    shutil.rmtree(own_source / "RGBNT201" / "test" / "TI")
    with pytest.raises(CatalogError, match=r"test/TI cannot be read"):
        ingest(own_source, tmp_path, "small")


def test_empty_split_is_named(own_source: Path, tmp_path: Path) -> None:
    for path in (own_source / "RGBNT201" / "test").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(CatalogError, match="folder test holds no image"):
        ingest(own_source, tmp_path, "small")


def test_validation_split_may_be_absent(own_source: Path, tmp_path: Path) -> None:
    shutil.rmtree(own_source / "RGBNT201" / "val")
    table = ingest(own_source, tmp_path, "small")
    assert list(table.statistics["splits"]) == ["test", "train"]
    assert np.array_equal(table.read(["sample_index"])["sample_index"].to_numpy(), np.arange(20))
