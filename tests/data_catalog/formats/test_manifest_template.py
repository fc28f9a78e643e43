import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_catalog.__main__ import main
from data_catalog.errors import CatalogError
from data_catalog.formats import find_format
from data_catalog.formats.manifest_columns import COLUMNS
from data_catalog.formats.manifest_template import example_rows, write_template

EACH_ENDING = pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])


@EACH_ENDING
def test_every_template_is_a_manifest_with_the_rows_of_the_example(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"photos.{ending}"
    assert write_template(path) == 10
    listing = find_format("manifest").read(path)
    rows = {f"{row['split']}/{row['name']}": row for row in example_rows()}
    assert set(rows) == {sample.sample_id for sample in listing.samples}
    for sample in listing.samples:
        row = rows[sample.sample_id]
        assert list(sample.files.values()) == [row["rgb"], row["nir"], row["tir"]]
        assert (sample.identity, sample.camera_id, sample.scene_id) == (row["identity"], row["camera"], -1)
        assert sample.is_query == sample.is_gallery == (row["split"] == "test")
    assert listing.captions == {name: row["caption"] for name, row in rows.items()}
    assert listing.masks == {name: row["mask"] for name, row in rows.items()}


def test_templates_explain_their_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ending in ("csv", "parquet"):
        write_template(tmp_path / f"a.{ending}")
    text = (tmp_path / "a.csv").read_text()
    schema = pq.read_schema(tmp_path / "a.parquet")
    for column in COLUMNS:
        assert f"# {column.name}: {column.about}\n" in text
        assert schema.field(column.name).metadata == {b"about": column.about.encode()}
    assert main(["template", "--out", str(tmp_path / "my photos.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert all(column.about in shown for column in COLUMNS)
    assert f"ingest --format manifest --source '{tmp_path}/my photos.jsonl' --catalog" in shown
    assert main(["template", "--out", str(tmp_path / "b.csv"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(c["name"], c["is_needed"]) for c in printed["columns"][:4]] == [
        ("name", True),
        ("split", True),
        ("identity", True),
        ("rgb", False),
    ]


def test_no_file_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("mine")
    assert main(["template", "--out", str(tmp_path / "a.csv")]) == 2
    assert "a.csv cannot be used (File exists)" in capsys.readouterr().err
    assert (tmp_path / "a.csv").read_text() == "mine"
    with pytest.raises(CatalogError, match=r"expected a name that ends in .csv, .jsonl, .parquet"):
        write_template(tmp_path / "a.xlsx")


def test_a_template_that_is_not_filled_in_is_refused_by_ingest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_template(tmp_path / "a.csv")
    arguments = ["--source", str(tmp_path / "a.csv"), "--catalog", str(tmp_path / "c")]
    assert main(["ingest", "--format", "manifest", *arguments]) == 2
    shown = capsys.readouterr().err
    assert "none of the 4 samples of split 'test' can be used (first: " in shown
    assert "cannot be read (No such file or directory)" in shown
