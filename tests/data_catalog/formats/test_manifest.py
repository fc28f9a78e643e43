"""Data sets of one's own: a file with a row for each sample gives what a published layout gives."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import fs

from data_catalog.__main__ import main
from data_catalog.captions.imported_captions import CaptionFileSettings, import_captions
from data_catalog.errors import CatalogError
from data_catalog.formats import find_format
from data_catalog.formats.manifest_columns import COLUMNS
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples.images import decode_mask
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.storage import filesystems
from data_catalog.tables.table import Table
from stmi.images import read_mask
from tests.data_catalog.folders import sample_ids, true_mask_path
from tests.data_catalog.manifests import rows_of, write_csv, write_jsonl, write_parquet

MANIFEST = IngestSettings(format="manifest")


def contents(table: Table) -> list[str]:
    return [shard.content for shard in table.manifest.shards]


def test_a_manifest_gives_the_rows_that_the_published_layout_gives(own_source: Path, tmp_path: Path) -> None:
    published = ingest(own_source, tmp_path / "c", "published", IngestSettings())
    rows = rows_of(own_source)
    for number, path in enumerate(
        (
            write_csv(own_source / "a.csv", rows),
            write_csv(own_source / "b.csv", rows[::-1], "\r\n", '# a comment, "quoted\n#\n', "utf-8-sig"),
            write_jsonl(own_source / "a.jsonl", rows),
            write_parquet(own_source / "a.parquet", rows),
        )
    ):
        table = ingest(path, tmp_path / "c", f"own{number}", MANIFEST)
        assert contents(table) == contents(published)
        assert table.read().equals(published.read())
        assert table.statistics["quarantined"] == []
    assert len(table) == len(sample_ids())


def test_rows_with_other_labels_or_files_make_another_table(own_source: Path, tmp_path: Path) -> None:
    rows = rows_of(own_source)
    path = write_csv(own_source / "a.csv", rows)
    first = ingest(path, tmp_path / "c", "own", MANIFEST)
    assert ingest(path, tmp_path / "c", "own", MANIFEST).reused
    # Neither the file's kind nor masks and captions are of the samples.
    path.unlink()
    for row in rows:
        row["caption"] = "other"
    again = ingest(write_jsonl(own_source / "b.jsonl", rows), tmp_path / "c", "own", MANIFEST)
    assert (again.reused, again.manifest.key) == (True, first.manifest.key)
    rows[0]["camera"] = 7
    other = ingest(write_jsonl(own_source / "b.jsonl", rows), tmp_path / "c", "own", MANIFEST)
    assert (other.reused, other.digest != first.digest) == (False, True)


def test_files_may_lie_anywhere(own_source: Path, tmp_path: Path) -> None:
    rows = rows_of(own_source)
    expected = ingest(write_csv(own_source / "a.csv", rows), tmp_path / "c", "own", MANIFEST)
    elsewhere, here = tmp_path / "disk" / "photos", tmp_path / "lists" / "deep"
    here.mkdir(parents=True)
    shutil.copytree(own_source / "RGBNT201", elsewhere)
    for row in rows:
        below = [row[name].removeprefix("RGBNT201/") for name in ("rgb", "nir", "tir")]
        row["rgb"] = f"../../disk/photos/{below[0]}"
        row["nir"] = str(elsewhere / below[1])
        row["tir"] = (elsewhere / below[2]).as_uri()
        row["mask"] = str(own_source / row["mask"])
    path = write_csv(here / "a.csv", rows)
    table = ingest(path, tmp_path / "c", "elsewhere", MANIFEST)
    assert contents(table) == contents(expected)
    listing = find_format("manifest").read(path)
    # Whoever makes shards elsewhere must see all of them.
    assert listing.root == tmp_path
    assert listing.samples[0].files["RGB"].startswith("disk/photos/test/RGB/")
    assert import_masks(table).statistics["coverage"] == 1


def test_files_of_a_linked_manifest_are_relative_to_the_link(own_source: Path, tmp_path: Path) -> None:
    stored = write_csv(tmp_path / "a-version-of-it", rows_of(own_source))
    (own_source / "newest.csv").symlink_to(stored)
    table = ingest(own_source / "newest.csv", tmp_path / "c", "own", MANIFEST)
    assert table.statistics["quarantined"] == []
    assert import_masks(table).statistics["coverage"] == 1


def test_a_line_of_jsonl_ends_where_its_object_does(own_source: Path) -> None:
    """JSON may hold U+2028 as it is, and captions of a language model do."""
    rows = rows_of(own_source)
    rows[0]["caption"] = "a person\u2028walking\x85away"
    path = own_source / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), "utf-8")
    listing = find_format("manifest").read(path)
    assert len(listing.samples) == len(rows)
    assert rows[0]["caption"] in listing.captions.values()


def test_images_at_uris_are_read_and_remembered(
    own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filesystems.open_root

    def bucket(root: str | Path) -> tuple[fs.FileSystem, str]:
        if not str(root).startswith("s3://photos/"):
            return opened(root)
        return fs.LocalFileSystem(), str(own_source / str(root).removeprefix("s3://photos/"))

    monkeypatch.setattr(filesystems, "open_root", bucket)
    rows = rows_of(own_source)
    expected = ingest(write_csv(own_source / "a.csv", rows), tmp_path / "c", "own", MANIFEST)
    for row in rows:
        row["tir"] = f"s3://photos/{row['tir']}"
    rows[0]["nir"] = "s3://photos/nowhere.jpg"
    path = write_csv(tmp_path / "source" / "b.csv", rows)
    table = ingest(path, tmp_path / "c", "uris", MANIFEST)
    assert (
        table.read()
        .slice(0, 5)
        .drop(["sample_index"])
        .equals(expected.read().slice(1, 5).drop(["sample_index"]))
    )
    [fault] = table.statistics["quarantined"]
    assert fault == {"file": "s3://photos/nowhere.jpg", "reason": "cannot be read (there is no such object)"}
    # Not read again while size and time are the same.
    read, images = filesystems.read_bytes, []

    def counted(filesystem: fs.FileSystem, file: str) -> bytes:
        images.extend([file] if file.endswith(".jpg") else [])
        return read(filesystem, file)

    monkeypatch.setattr(filesystems, "read_bytes", counted)
    assert ingest(path, tmp_path / "c", "uris", IngestSettings(format="manifest", size=(32, 16))).reused
    assert images == []


def test_storage_that_cannot_be_reached_ends_ingest_and_is_no_fault_of_a_file(
    own_source: Path, tmp_path: Path
) -> None:
    rows = rows_of(own_source)
    rows[0]["rgb"] = "s3://user:secret@photos/a.jpg"
    with pytest.raises(CatalogError, match=r"cannot be read now \(.*holds credentials"):
        ingest(write_csv(own_source / "a.csv", rows), tmp_path / "c", "own", MANIFEST)
    assert not (tmp_path / "c" / "own" / "samples").exists()


def test_masks_and_captions_of_the_manifest_are_imported(own_source: Path, tmp_path: Path) -> None:
    rows = rows_of(own_source)
    rows[3] |= {"mask": "", "caption": ""}
    path = write_csv(own_source / "a.csv", rows)
    table = ingest(path, tmp_path / "c", "own", MANIFEST)
    captions = import_captions(table)
    expected = {f"{row['split']}/{row['name']}": row["caption"] for row in rows}
    found = captions.read(["sample_id", "caption"]).to_pylist()
    assert {row["sample_id"]: row["caption"] for row in found} == expected
    without = f"{rows[3]['split']}/{rows[3]['name']}"
    with pytest.raises(CatalogError, match=rf"1 of 28 samples .*{without} has no mask in the manifest"):
        import_masks(table)
    masks = import_masks(table, allow_missing=True).read(["sample_id", "mask", "source"]).to_pylist()
    assert [row["sample_id"] for row in masks if row["source"] == "missing"] == [without]
    for row in masks:
        if row["source"] != "missing":
            truth = read_mask(true_mask_path(own_source, row["sample_id"]))
            assert np.array_equal(decode_mask(row["mask"]), truth)
    # Both are found again, and made again of a manifest with other ones, wherever it is.
    assert import_captions(table).reused
    assert import_masks(table, allow_missing=True).reused
    path.rename(own_source / "moved.csv")
    with pytest.raises(CatalogError, match=r"manifest .*a.csv of data set 'own' is not there; name it with"):
        import_captions(table)
    assert import_captions(table, own_source / "moved.csv").reused
    with pytest.raises(CatalogError, match="--choose=RGB: a manifest has one caption"):
        import_captions(table, own_source / "moved.csv", CaptionFileSettings(choose="RGB"))
    bare = [{name: row[name] for name in ("name", "split", "identity", "rgb")} for row in rows]
    path = write_csv(own_source / "bare.csv", bare)
    with pytest.raises(
        CatalogError, match=r"none of 0 items names a sample .* in a manifest a column caption"
    ):
        import_captions(table, path)


def test_flags_default_to_all_of_val_and_test_and_may_be_chosen(own_source: Path) -> None:
    rows = rows_of(own_source)
    listed = find_format("manifest").read(write_csv(own_source / "a.csv", rows)).samples
    assert all((s.is_query, s.is_gallery) == (s.split != "train",) * 2 for s in listed)
    for number, row in enumerate(rows):
        row |= {"query": "", "gallery": ""}
        if row["split"] == "test":
            row |= {"query": ["yes", "FALSE", ""][number % 3], "gallery": ["0", "1", "true"][number % 3]}
    listed = find_format("manifest").read(write_csv(own_source / "b.csv", rows)).samples
    found = [(s.is_query, s.is_gallery) for s in listed if s.split == "test"]
    assert found[:3] == [(True, False), (False, True), (True, True)]


def test_empty_cells_of_pandas_are_empty(own_source: Path) -> None:
    rows = rows_of(own_source, with_cameras=False)
    frame = pd.DataFrame(rows).assign(scene=float("nan"), query=None)
    frame["identity"] = frame["identity"].astype(float)
    frame.to_parquet(own_source / "a.parquet")
    frame.to_csv(own_source / "a.csv", index=False)
    frame.to_json(own_source / "a.jsonl", orient="records", lines=True)
    listed = [find_format("manifest").read(own_source / f"a.{end}") for end in ("parquet", "jsonl")]
    assert listed[0] == listed[1]
    assert {(s.identity, s.camera_id, s.scene_id) for s in listed[0].samples} == {
        (row["identity"], -1, -1) for row in rows
    }
    # CSV has text alone, so 1.0 is none of its whole numbers.
    with pytest.raises(
        CatalogError, match=r"28 values are wrong.*\n  line 2, identity: '21.0', expected a whole"
    ):
        find_format("manifest").read(own_source / "a.csv")


WRONG = [
    ({"name": ""}, "name: empty, expected a value in every row"),
    ({"name": "a/b"}, "name: 'a/b', expected at most 200 characters without slashes"),
    ({"name": "x.query"}, "name: 'x.query', expected at most"),
    ({"split": "validation"}, "split: 'validation', expected one of train, val, test"),
    ({"split": ""}, "split: empty, expected a value in every row"),
    ({"identity": "alice"}, "identity: 'alice', expected a whole number from 0 .*give every person"),
    ({"identity": "-1"}, "identity: '-1', expected a whole number"),
    ({"identity": "1" * 19}, "identity: '1111111111111111111', expected a whole number"),
    ({"rgb": "C:\\photos\\a.jpg"}, r"rgb: 'C:.*', expected a path with forward slashes"),
    (
        {"tir": "https://example.org/a.jpg"},
        "tir: 'https.*', expected a path, or a URI that begins with s3://",
    ),
    ({"rgb": "", "nir": "", "tir": ""}, "rgb, nir, tir: empty, expected at least one image"),
    ({"camera": ""}, "camera: empty, but other rows have it; give it in every row or in none"),
    ({"camera": "1.5"}, "camera: '1.5', expected a whole number from 0 to 9999"),
    ({"camera": "20240101"}, "camera: '20240101', expected a whole number from 0 to 9999"),
    ({"query": "maybe"}, "query: 'maybe', expected one of true, yes, 1, false, no, 0, or nothing"),
    ({"split": "train", "query": "true"}, "query: 'true', expected false or nothing in split train"),
    ({"mask": "a.jpg"}, "mask: 'a.jpg', expected the path of a .npy or .png file"),
    ({"mask": "s3://b/a.npy"}, "mask: 's3://b/a.npy', expected the path of a .npy or .png file on this"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_value_is_named_with_its_line_and_nothing_is_made(
    own_source: Path,
    tmp_path: Path,
    change: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row | {"query": ""} for row in rows_of(own_source)]
    rows[2] |= change
    path = write_csv(own_source / "a.csv", rows, before="# a comment\n")
    arguments = ["--format", "manifest", "--source", str(path), "--catalog", str(tmp_path / "c")]
    assert main(["ingest", *arguments]) == 2
    shown = capsys.readouterr().err
    assert re.search(rf"a\.csv: 1 values are wrong.*:\n  line 5, {message}", shown), shown
    assert not (tmp_path / "c").exists()


def test_all_wrong_rows_are_named_at_once_but_only_the_first_ten(own_source: Path) -> None:
    rows = rows_of(own_source)
    for row in rows[:15]:
        row["identity"] = "?"
    rows[21]["name"] = rows[20]["name"]
    with pytest.raises(CatalogError) as refused:
        find_format("manifest").read(write_csv(own_source / "a.csv", rows))
    first, *lines = str(refused.value).splitlines()
    assert "16 values are wrong" in first
    assert lines[0].startswith("  line 2, identity: '?'")
    assert (len(lines), lines[-1]) == (11, "  and 6 more")
    for row in rows[:15]:
        row["identity"] = 1
    with pytest.raises(CatalogError, match=r"line 23, name: '.*', is that of line 22 too; give each sample"):
        find_format("manifest").read(write_csv(own_source / "a.csv", rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,split\n", "column 'identity' is missing; expected the columns name, split"),
        ("name,split,identity,thermal\na,train,1,b\n", "column 'thermal' is unknown; expected the columns"),
        ("name,split,identity,rgb,rgb\na,train,1,b,c\n", "column 'rgb' is there twice"),
        ("name,split,identity,rgb\n", "has no row; expected one for each sample"),
        ("name,split,identity,rgb\na,train,1\n", "line 2, row: '3 cells', expected 4 cells as in the header"),
        ('name,split,identity,rgb\na,train,1,"b\n', "cannot be read"),
        ("", "column 'name', 'split', 'identity' is missing"),
    ],
)
def test_a_csv_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(CatalogError, match=message):
        find_format("manifest").read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "name,Größe\n".encode("utf-16"), "is not UTF-8 .*; save it as UTF-8"),
        ("a.jsonl", b'{"name": "a"}\n[1]\n', "'identity', 'split' is missing|is missing"),
        (
            "a.jsonl",
            b'{"name": "a", "split": "test", "identity": 1, "rgb": ["b"]}\n',
            r"line 1, rgb: .*text, a",
        ),
        (
            "a.jsonl",
            b'{"name": "a", "split": "test", "identity": 1, "rgb": "b"}\nnonsense\n',
            "line 2, row: 'nonsense', expected a JSON object in one line",
        ),
        (
            "a.jsonl",
            b'{"name": "a", "split": "test", "identity": 1, "rgb": "b", "caption": "\\ud800"}\n',
            "line 1, caption: .*half of one is there",
        ),
        ("a.parquet", b"no parquet", "cannot be read .*; write it again"),
        ("a.xlsx", b"", "ends in .xlsx; a manifest is a file that ends in .csv, .jsonl, .parquet"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CatalogError, match=message):
        find_format("manifest").read(tmp_path / name)


def test_a_manifest_is_no_folder(own_source: Path, tmp_path: Path) -> None:
    path = write_csv(own_source / "a.csv", rows_of(own_source))
    with pytest.raises(
        CatalogError, match=r"a.csv is a file, and format rgbnt201 a folder; .*--format manifest"
    ):
        ingest(path, tmp_path / "c", "own", IngestSettings())


def test_a_folder_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"ends in nothing; a manifest is a file"):
        find_format("manifest").read(tmp_path / "folder")
    with pytest.raises(CatalogError, match=r"source .*a\.csv is no file"):
        find_format("manifest").read(tmp_path / "a.csv")


def test_help_of_ingest_explains_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ingest", "--help"])
    shown = capsys.readouterr().out.partition("--format manifest:")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in shown[2:]] == [column.name for column in COLUMNS]
    assert max(map(len, shown)) <= 80


def test_validation_identities_need_no_cameras(own_source: Path, tmp_path: Path) -> None:
    rows = [row for row in rows_of(own_source, with_cameras=False) if row["split"] != "val"]
    # One sample has no match.
    rows = [row for row in rows if row["identity"] != 1] + [row for row in rows if row["identity"] == 1][:1]
    path = write_jsonl(own_source / "a.jsonl", rows)
    settings = IngestSettings(format="manifest", validation_identities=1)
    table = ingest(path, tmp_path / "c", "own", settings)
    found = table.read(["identity", "split", "camera_id", "is_query"]).to_pylist()
    held_out = {row["identity"] for row in found if row["split"] == "val"}
    assert len(held_out) == 1
    assert held_out < {2, 3}
    assert {row["camera_id"] for row in found} == {-1}
    with pytest.raises(CatalogError, match="of 3 training identities 2 have"):
        ingest(path, tmp_path / "c", "own", settings.model_copy(update={"validation_identities": 3}))
    # Masks and captions of the manifest are found under its own splits.
    assert import_captions(table).statistics["empty"] == 0
    assert import_masks(table).statistics["coverage"] == 1
