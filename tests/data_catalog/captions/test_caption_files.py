import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
from PIL import Image

from data_catalog.__main__ import main
from data_catalog.captions.caption_files import CaptionFile, find_caption_files, read_caption_files
from data_catalog.captions.imported_captions import CaptionFileSettings, import_captions, join_captions
from data_catalog.captions.item_names import file_stem
from data_catalog.captions.redaction import REDACTION_VERSION
from data_catalog.errors import CatalogError
from data_catalog.samples.any_image import TYPES
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from tests.data_catalog.folders import FOLDERS, names, sample_ids, write_data_set

LONG = "A very long caption of a person who wears many things, one over another, " * 6
SUFFIXES = {"RGB": "_RGB", "NIR": "_NI", "TIR": "_TI"}


def entries(split: str) -> list[dict[str, str]]:
    """One caption per sample, not in the order of the samples."""
    return [
        {"item": f"{name}.jpg", "description": f"A person, {split} {name}."}
        for name in reversed(names(split))
    ]


def write_captions(folder: Path, **changed: Any) -> Path:
    """A file per split; a split's entries may be given, as JSON values or bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in FOLDERS:
        content = changed.get(split, entries(split))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{split}.json").write_bytes(data)
    return folder


ALL_ENDINGS = [ending for ending, kind in Image.registered_extensions().items() if kind in TYPES]
"""Of the images that a manifest may name."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Table:
    source = tmp_path_factory.mktemp("source")
    write_data_set(source)
    catalog = tmp_path_factory.mktemp("catalog")
    return ingest(source, catalog, "small", IngestSettings(samples_per_shard=10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "captions")


def read_captions(table: Table) -> dict[str, str]:
    rows = table.read().to_pylist()
    assert [row["sample_id"] for row in rows] == sample_ids()
    assert all(row["attributes"] == [] for row in rows)
    return {row["sample_id"]: row["caption"] for row in rows}


def test_every_sample_gets_the_caption_of_its_file_name(samples: Table, folder: Path) -> None:
    table = import_captions(samples, folder)
    assert read_captions(table) == {
        id_: f"A person, {id_.split('/')[0]} {id_.split('/')[1]}." for id_ in sample_ids()
    }
    assert table.statistics["captioned"] == 1
    for name in ("missing", "empty", "too_long", "absent", "duplicates"):
        assert table.statistics[name] == 0
    assert table.statistics["listed"] == {}
    assert import_captions(samples, folder).reused


def test_files_of_another_data_set_are_refused(samples: Table, tmp_path: Path) -> None:
    others = [{"item": f"{number:04d}_c1.jpg", "description": "A car."} for number in range(7)]
    folder = write_captions(tmp_path, train=others, val=[], test=[])
    with pytest.raises(
        CatalogError,
        match=r"train\.json.*: none of 7 items names a sample of data set 'small' \(first: train\.json: "
        r"0000_c1\.jpg, .*0004_c1\.jpg\); expected file names such as 0000\d\d_cam1_0_00\.jpg",
    ):
        import_captions(samples, folder)
    with pytest.raises(CatalogError, match=r"none of 0 items .*\(first: there is none\)"):
        import_captions(samples, write_captions(tmp_path, train=[], val=[], test=[]))
    # One caption that fits is enough; the others are counted.
    one = entries("train")[:1]
    assert import_captions(samples, write_captions(tmp_path, train=one)).statistics["missing"] == 11


def test_content_of_the_files_decides_which_table_it_is(tmp_path: Path) -> None:
    def find_digest(folder: Path, splits: tuple[str, ...] = ("train", "test")) -> str:
        return read_caption_files([(folder / f"{split}.json", split, "") for split in splits], []).digest

    first, moved = write_captions(tmp_path / "a"), write_captions(tmp_path / "b")
    assert find_digest(moved) == find_digest(first)
    assert find_digest(moved, ("train", "val")) != find_digest(first)
    changed = entries("test")
    changed[0]["description"] += " "
    assert find_digest(write_captions(moved, test=changed)) != find_digest(first)


def test_faulty_coverage_is_counted_and_listed(samples: Table, folder: Path) -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    train = entries("train")
    train[0]["description"] = "  "
    train[1]["description"] = LONG
    left_out = train.pop(2)
    exact = next(
        text
        for count in range(60, 90)
        if len(tokenizer.encode(text := "hat " * count)) == 75  # 77 with start and end
    )
    train[2]["description"] = exact
    train[3]["description"] = exact + "hat"
    train.append({"item": "999999_cam1_0_00.jpg", "description": "Nobody."})
    train.append(dict(train[4]))
    table = import_captions(samples, write_captions(folder, train=train))
    listed = table.statistics["listed"]

    def find_id(entry: dict[str, str]) -> str:
        return f"train/{entry['item'].removesuffix('.jpg')}"

    assert listed["missing"] == [find_id(left_out)]
    assert listed["empty"] == [find_id(train[0])]
    assert sorted(listed["too_long"]) == sorted([find_id(train[1]), find_id(train[3])])
    assert listed["absent"] == ["train.json: 999999_cam1_0_00.jpg"]
    assert listed["duplicates"] == [f"train.json: {train[4]['item']}"]
    assert all(table.statistics[name] == len(items) for name, items in listed.items())
    assert table.statistics["captioned"] == pytest.approx(26 / 28)
    captions = read_captions(table)
    assert captions[find_id(left_out)] == captions[find_id(train[0])] == ""
    assert captions[find_id(train[1])] == LONG.strip()


def test_one_modality_is_chosen_or_all_are_joined(samples: Table, tmp_path: Path) -> None:
    texts = {"RGB": "Red coat", "NIR": "Dark coat.", "TIR": ""}
    for split in FOLDERS:
        for modality, suffix in SUFFIXES.items():
            content = [{"item": f"{name}.jpg", "description": texts[modality]} for name in names(split)]
            (tmp_path / f"{split}{suffix}.json").write_text(json.dumps(content))
    for choose, text in texts.items():
        files = find_caption_files(samples, tmp_path, choose)
        read = read_caption_files(files, sample_ids()).captions
        assert read == {sample_id: {choose: text} for sample_id in sample_ids()}
    table = import_captions(samples, tmp_path, CaptionFileSettings(choose="join"))
    assert set(read_captions(table).values()) == {"Red coat. Dark coat."}
    assert table.statistics["empty"] == 0


def test_joined_captions_are_sentences_said_once() -> None:
    assert join_captions(["A red hat", "A bag.", "A red hat"]) == "A red hat. A bag."
    assert join_captions(["A red hat", "", "A red hat"]) == "A red hat"
    assert join_captions(["", ""]) == ""


def test_files_lie_where_the_layout_keeps_them(tmp_path: Path) -> None:
    source = tmp_path / "train_rgbir"
    write_data_set(source)
    samples = ingest(source, tmp_path / "catalog", "small")
    with pytest.raises(CatalogError, match=r"RGBNT201/text/test\.json is not there; put it there"):
        import_captions(samples)
    write_captions(source / "RGBNT201" / "text")
    assert import_captions(samples).statistics["captioned"] == 1
    shutil.move(source, tmp_path / "elsewhere")
    # The table is there already, but nothing says that it is the one that is meant.
    with pytest.raises(CatalogError, match="name the folder of the caption files with --captions"):
        import_captions(samples)


def test_ambiguous_caption_files_are_refused(samples: Table, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"test_NI\.json is not there, but test\.json is.*leave out"):
        import_captions(samples, folder, CaptionFileSettings(choose="NIR"))
    (folder / "val.json").rename(folder / "val_TI.json")
    with pytest.raises(CatalogError, match=r"val\.json is not there, but files for modalities are.*--choose"):
        import_captions(samples, folder)
    with pytest.raises(CatalogError, match=r"nowhere/test\.json is not there; put it there"):
        import_captions(samples, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe[]", r"test\.json is not UTF-8 \(byte 0: 0xff\)"),
        ('[{"item": "é"}]'.encode("latin-1"), r"test\.json is not UTF-8 \(byte 11: 0xe9\)"),
        (b'[{"item": "a.jpg",\n "description": }]', r"test\.json line 2, column 17 is not JSON"),
        (b"", r"line 1, column 1 is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5_000 + b"]", r"test\.json cannot be read \(Exceeds the limit"),
        ({"a.jpg": "text"}, "holds a dict, expected a list"),
        (["text"], "entry 1 is a str, expected an object"),
        ([{"item": "a.jpg"}], "entry 1 has no 'description'"),
        ([{"item": "a.jpg", "description": None}], "entry 1: description is None, expected text"),
        ([{"item": 7, "description": "text"}], "entry 1: item is 7, expected text"),
        ([{"item": " ", "description": "text"}], "names no file"),
        ([{"item": "a.jpg", "description": "\ud83d"}], r"description holds half a character \('\\ud83d'"),
        (
            [*entries("test"), {**entries("test")[0], "description": "Another."}],
            r"entry 9: item '000022_cam2_0_01\.jpg' was captioned before with another text",
        ),
    ],
)
def test_malformed_file_is_refused_with_file_and_entry(
    samples: Table, folder: Path, content: Any, message: str
) -> None:
    write_captions(folder, test=content)
    with pytest.raises(CatalogError, match=message) as error:
        import_captions(samples, folder)
    assert str(folder / "test.json") in str(error.value)


def test_byte_order_mark_chinese_and_white_space_are_read(samples: Table, folder: Path) -> None:
    test = entries("test")
    test[0]["description"] = "A car\n with  plate 粤B12345."
    data = b"\xef\xbb\xbf" + json.dumps(test, ensure_ascii=False).encode()
    captions = read_captions(import_captions(samples, write_captions(folder, test=data)))
    assert captions[f"test/{test[0]['item'][:-4]}"] == "A car with plate 粤B12345."


@pytest.mark.parametrize(
    ("item", "stem"),
    [
        ("0019_s012_v0_000.jpg", "0019_s012_v0_000"),
        ("0019/vis/0019_s012_v0_000.JPG", "0019_s012_v0_000"),
        ("bounding_box_test\\0548_c0002_000.png", "0548_c0002_000"),
        ("0548_c0002_000", "0548_c0002_000"),
        ("name.with.dots", "name.with.dots"),
        ("name.with.dots.webp", "name.with.dots"),
        *((f"p1_c1{ending}", "p1_c1") for ending in ALL_ENDINGS),
    ],
)
def test_item_names_a_file_with_or_without_folder_and_ending(item: str, stem: str) -> None:
    assert file_stem(item) == stem


def test_item_that_could_mean_two_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text(json.dumps([{"item": "a.jpg", "description": "x"}]))
    files: list[CaptionFile] = [(path, "test", "")]
    with pytest.raises(CatalogError, match="could mean any of test/0001/a, test/0002/a"):
        read_caption_files(files, ["test/0001/a", "test/0002/a"])
    # Of another split it would be another sample.
    assert read_caption_files(files, ["test/0001/a", "train/a"]).captions == {"test/0001/a": {"": "x"}}


def test_personal_text_is_redacted_and_counted(samples: Table, folder: Path) -> None:
    test = entries("test")
    for entry in test:
        entry["description"] = "A red car."
    test[0]["description"] = "A red car with the license plate 粤B12345 on a road."
    test[1]["description"] = "粤B12345"
    plain = [[{**entry, "description": "A car."} for entry in entries(split)] for split in ("train", "val")]
    write_captions(folder, train=plain[0], val=plain[1], test=test)
    table = import_captions(samples, folder, CaptionFileSettings(redact=True))
    captions = read_captions(table)
    assert captions[f"test/{test[0]['item'][:-4]}"] == "A red car with the license plate on a road."
    assert captions[f"test/{test[1]['item'][:-4]}"] == ""
    assert table.statistics["redactions"] == {"plate": 2}
    assert table.statistics["redacted"] == 2
    assert table.statistics["captioned"] == pytest.approx(27 / 28)
    assert table.manifest.settings["redact"] == REDACTION_VERSION


def test_command_imports_and_refuses_options_of_another_captioner(
    samples: Table, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = entries("train")[:-7]
    write_captions(folder, train=train)
    command = ["captions", "--catalog", samples.catalog, "--captioner", "files", "--captions", str(folder)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 7
    assert main(command) == 0
    assert "train/000002_cam1_0_00, ..." in capsys.readouterr().out
    for extra, message in (
        (["--endpoint", "http://x/v1"], "--endpoint is an option of --captioner llm, not of files"),
        (["--card", "rgbnt201"], "--card is an option of --captioner readings and llm, not of files"),
    ):
        assert main([*command, *extra]) == 2
        assert message in capsys.readouterr().err
    assert main(["captions", "--catalog", samples.catalog, "--captioner", "llm", "--model", "m"]) == 2
    assert "--endpoint is missing; --captioner llm needs it" in capsys.readouterr().err
