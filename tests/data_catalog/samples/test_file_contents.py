"""The content of files decides which tables are found, and not when they were written."""

import os
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from data_catalog.errors import NotWritableError
from data_catalog.masks import mask_statistics
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters import mask_files
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples import file_contents, ingestion, source_images
from data_catalog.samples.file_contents import digest_files
from data_catalog.samples.ingestion import ingest
from data_catalog.storage import local_copies
from data_catalog.storage.folders import Folder
from data_catalog.tables.table import Table
from tests.data_catalog.folders import image_path, sample_ids, true_mask_path

FIRST = sample_ids()[0]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(local_copies.FOLDER_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes are read to find out what is in them."""
    files: list[Path] = []

    def note(root: Path, file: str) -> bytes:
        files.append(root / file)
        return source_images.read_source(root, file)

    monkeypatch.setattr(file_contents, "read_source", note)
    return files


def made_of_files(source: Path, catalog: Path) -> list[Table]:
    """Every table whose key depends on files: samples, masks with a truth, and imported masks."""
    samples = ingest(source / "RGBNT201", catalog, "small")
    scored = make_masks(samples, GrabCutSettings(), true_masks=source / "true_masks")
    imported = import_masks(samples, source / "true_masks", true_masks=source / "true_masks")
    return [samples, scored, imported]


def keys(tables: list[Table]) -> list[str]:
    return [table.manifest.key for table in tables]


def copy(folder: Path, to: Path) -> Path:
    """A copy whose files were all changed at another time, as `cp -r` makes it."""
    copytree(folder, to)
    for number, path in enumerate(path for path in to.rglob("*") if path.is_file()):
        os.utime(path, ns=(0, 10**18 + number * 10**6))
    return to


def test_copied_images_and_catalog_are_found_under_the_same_keys(
    own_source: Path, tmp_path: Path, read: list[Path]
) -> None:
    made = made_of_files(own_source, tmp_path / "catalog")
    source, catalog = copy(own_source, tmp_path / "copy"), copy(tmp_path / "catalog", tmp_path / "catalog 2")
    read.clear()
    found = made_of_files(source, catalog)
    assert keys(found) == keys(made)
    assert all(table.reused for table in found)
    images, masks = 3 * len(sample_ids()), len(sample_ids())
    assert len(read) == images + masks
    # From now on the times of the copy are known, too.
    read.clear()
    assert keys(made_of_files(source, catalog)) == keys(made)
    assert read == []


def test_two_machines_give_the_same_content_the_same_keys(own_source: Path, tmp_path: Path) -> None:
    here = made_of_files(own_source, tmp_path / "here")
    there = made_of_files(copy(own_source, tmp_path / "copy"), tmp_path / "there")
    assert keys(here) == keys(there)
    assert [table.digest for table in here] == [table.digest for table in there]
    assert not any(table.reused for table in there)


def test_only_files_of_another_size_or_time_are_read_again(
    own_source: Path, tmp_path: Path, read: list[Path]
) -> None:
    made = made_of_files(own_source, tmp_path / "catalog")
    touched = [image_path(own_source, FIRST, 0), true_mask_path(own_source, FIRST)]
    for path in touched:
        os.utime(path, ns=(0, 10**18))
    read.clear()
    assert keys(made_of_files(own_source, tmp_path / "catalog")) == keys(made)
    assert sorted(set(read)) == sorted(touched)


def test_content_of_the_same_size_and_time_is_read_where_the_file_was_changed(tmp_path: Path) -> None:
    """Archives and content stores give all files one time, and masks as `.npy` all have one size."""
    path = tmp_path / "mask.npy"

    def write(value: bytes) -> str:
        path.write_bytes(value)
        os.utime(path, ns=(0, 10**18))
        return digest_files(tmp_path, [path.name])[path.name]

    assert write(b"one") != write(b"two")


def test_other_content_gives_other_keys(own_source: Path, tmp_path: Path) -> None:
    before = made_of_files(own_source, tmp_path)
    masks = [true_mask_path(own_source, sample_id).read_bytes() for sample_id in sample_ids()]
    true_mask_path(own_source, FIRST).write_bytes(next(data for data in masks if data != masks[0]))
    assert [table.reused for table in made_of_files(own_source, tmp_path)] == [True, False, False]
    path = image_path(own_source, sample_ids()[0], 1)
    path.write_bytes(image_path(own_source, sample_ids()[1], 1).read_bytes())
    after = made_of_files(own_source, tmp_path)
    assert set(keys(before)).isdisjoint(keys(after))


def test_tables_of_earlier_versions_are_found_by_size_and_time(
    own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(ingestion, "_fingerprint", ingestion._earlier_fingerprint)
        earlier.setattr(mask_files, "_fingerprint", mask_files._earlier_fingerprint)
        truth = mask_statistics.TrueMasks
        earlier.setattr(truth, "fingerprint", truth.earlier_fingerprint)
        made = made_of_files(own_source, tmp_path)
    found = made_of_files(own_source, tmp_path)
    assert keys(found) == keys(made)
    assert all(table.reused for table in found)


@pytest.mark.parametrize("text", ["", "{}", '{"files": {"a": 1}}', "\xff"])
def test_damaged_hints_are_said_and_made_again(
    text: str, tmp_path: Path, read: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "names").mkdir()
    path = tmp_path / "names" / "a.png"
    path.write_bytes(b"content")
    found = digest_files(path.parent, ["a.png"])
    [hints] = (tmp_path / "cache" / "files").iterdir()
    hints.write_bytes(text.encode("latin-1"))
    assert digest_files(path.parent, ["a.png"]) == found
    assert f"{hints}: is damaged" in caplog.text
    assert read == [path, path]
    assert digest_files(path.parent, ["a.png"]) == found
    assert read == [path, path]


def test_hints_that_cannot_be_stored_are_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any) -> None:
        raise NotWritableError("the disk is full")

    monkeypatch.setattr(Folder, "write", refuse)
    (tmp_path / "a").write_bytes(b"content")
    assert len(digest_files(tmp_path, ["a"])["a"]) == 64
    assert "the next call will read every file again: the disk is full" in caplog.text


def test_names_that_are_not_utf8_and_files_that_are_not_there_have_contents(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes(b"content")
    found = digest_files(tmp_path, [name, "gone.png"])
    assert found["gone.png"] == "cannot be read (No such file or directory)"
    assert digest_files(tmp_path, [name])[name] == found[name]
