import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.captions.imported_captions import CaptionFileSettings, import_captions
from data_catalog.checks.data_checks import CheckSettings, run_checks
from data_catalog.checks.newest_tables import find_newest_tables
from data_catalog.errors import CatalogError
from data_catalog.inspect.verification import verify
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples.images import decode_mask
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import open_view
from tests.data_catalog.vehicle_folders import (
    HEIGHT,
    MSVR310,
    RGBNT100,
    WIDTH,
    msvr310_path,
    write_msvr310,
    write_rgbnt100,
)

NAME = "0501_c0001_000"
"""A query that lies in the gallery too."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """RGBNT100, with a query that was compressed again."""
    images = write_rgbnt100(tmp_path) / "rgbir"
    with Image.open(images / "bounding_box_test" / f"{NAME}.jpg") as image:
        image.save(images / "query" / f"{NAME}.jpg", quality=40)
    return images


def ingest_vehicles(images: Path, **settings: int) -> Table:
    source = images.parent
    return ingest(source, source.parent / "catalog", "cars", IngestSettings(format="rgbnt100", **settings))


def roles(table: Table) -> dict[str, str]:
    rows = table.read(["sample_id", "split", "is_query", "is_gallery"]).to_pylist()
    return {
        row["sample_id"].removeprefix("test/"): "query " * row["is_query"] + "gallery" * row["is_gallery"]
        for row in rows
        if row["split"] == "test"
    }


def test_query_that_is_no_copy_is_a_sample_of_its_own(images: Path) -> None:
    table = ingest_vehicles(images, samples_per_shard=3)
    assert roles(table) == {
        NAME: "gallery",
        f"{NAME}.query": "query ",
        "0501_c0002_000": "gallery",
        "0502_c0001_000": "gallery",
        "0502_c0003_000": "query gallery",
        "0502_c0004_007": "query ",
    }
    rows = {row["sample_id"]: row for row in table.read().to_pylist()}
    query, gallery = rows[f"test/{NAME}.query"], rows[f"test/{NAME}"]
    assert query["side_by_side"] == (images / "query" / f"{NAME}.jpg").read_bytes()
    assert gallery["side_by_side"] == (images / "bounding_box_test" / f"{NAME}.jpg").read_bytes()
    for name in ("identity", "camera_id", "scene_id", "split", "height", "width"):
        assert query[name] == gallery[name]
    assert [row["sample_index"] for row in rows.values()] == list(range(len(rows)))
    assert list(rows) == sorted(rows)
    assert table.statistics["separate_queries"] == [f"test/{NAME}.query"]
    assert table.statistics["quarantined"] == []
    assert verify(table.catalog, "cars").errors == ()


def test_queries_that_are_copies_are_no_samples_of_their_own(tmp_path: Path) -> None:
    table = ingest_vehicles(write_rgbnt100(tmp_path) / "rgbir")
    assert len(table) == len({*RGBNT100["bounding_box_test"], *RGBNT100["query"]}) + 4
    assert "separate_queries" not in table.statistics


def test_checks_count_the_queries_that_are_no_copies(images: Path) -> None:
    table = ingest_vehicles(images)
    report = run_checks(find_newest_tables(table.catalog, "cars", None), CheckSettings(images=False))
    [finding] = [finding for finding in report.warnings if finding.check == "query_is_no_copy"]
    assert finding.message.startswith(
        f"1 queries are no copies of the gallery's file of their name (test/{NAME}"
    )
    assert finding.rows == (f"test/{NAME}.query",)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"", "is empty (zero bytes)"),
        (lambda data: data[:-60], "cannot be decoded"),
    ],
)
def test_damaged_query_costs_its_gallery_sample_nothing(
    images: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    path = images / "query" / f"{NAME}.jpg"
    path.write_bytes(spoil(path.read_bytes()))
    table = ingest_vehicles(images)
    [fault] = table.statistics["quarantined"]
    assert fault["file"] == f"rgbir/query/{NAME}.jpg"
    assert fault["reason"].startswith(reason)
    assert roles(table)[NAME] == "gallery"
    assert "separate_queries" not in table.statistics
    # The query's file is part of what was ingested, so putting it right is noticed.
    shutil.copy(images / "bounding_box_test" / path.name, path)
    again = ingest_vehicles(images)
    assert (again.statistics["quarantined"], roles(again)[NAME]) == ([], "query gallery")


def test_disk_that_fails_at_a_query_ends_the_ingest(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.parent.name == "query":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "read_bytes", fail)
        with pytest.raises(CatalogError, match=r"query/\S+ cannot be read now \(Input/output error\)"):
            ingest_vehicles(images)
    assert ingest_vehicles(images).statistics["separate_queries"] == [f"test/{NAME}.query"]


def test_query_with_one_other_modality_or_without_one_is_separate(tmp_path: Path) -> None:
    root = write_msvr310(tmp_path)
    other, lacking = "0019_s012_v0_000", "0020_s014_v3_000"
    Image.new("RGB", (WIDTH, HEIGHT), (9, 99, 9)).save(msvr310_path(root, "query3", other, "ni"))
    msvr310_path(root, "query3", lacking, "th").unlink()
    table = ingest(root, tmp_path / "catalog", "cars", IngestSettings(format="msvr310"))
    assert roles(table) == {
        other: "gallery",
        f"{other}.query": "query ",
        "0019_s013_v1_000": "gallery",
        "0020_s012_v0_000": "gallery",
        lacking: "gallery",
        "0020_s015_v4_002": "query ",
    }
    assert len(table) == len({*MSVR310["bounding_box_test"], *MSVR310["query3"]}) + 1 + 4
    [fault] = table.statistics["quarantined"]
    assert fault["file"].startswith("query3/0020/")
    assert "TIR" in fault["reason"]


def test_mask_caption_and_view_of_a_separate_query_are_its_own(images: Path, tmp_path: Path) -> None:
    table = ingest_vehicles(images)
    ids = table.read(["sample_id"])["sample_id"].to_pylist()
    folders = {"train": ["bounding_box_train"], "test": ["bounding_box_test", "query"]}
    rng = np.random.default_rng(3)
    masks = {}
    for split, split_folders in folders.items():
        for folder in split_folders:
            for path in sorted((images / folder).iterdir()):
                masks[folder, path.stem] = rng.random((HEIGHT, WIDTH)) < 0.5
                target = tmp_path / "masks" / "mask" / folder / f"{path.stem}.npy"
                target.parent.mkdir(parents=True, exist_ok=True)
                np.save(target, masks[folder, path.stem])
        names = sorted({id_.split("/")[1] for id_ in ids if id_.startswith(split)})
        plain = [name for name in names if not name.endswith(".query")]
        entries = [{"item": f"{name}.jpg", "description": f"{name}."} for name in plain]
        (tmp_path / f"{split}.json").write_text(json.dumps(entries))
        readings = {"RGB": {"colour": {"value": "red", "confidence": 1.0}}}
        lines = [json.dumps({"item": name, "readings": readings}) for name in plain]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    found = import_masks(table, tmp_path / "masks")
    mask_of = dict(zip(*found.read(["sample_id", "mask"]).to_pydict().values(), strict=True))
    assert np.array_equal(decode_mask(mask_of[f"test/{NAME}"]), masks["bounding_box_test", NAME])
    assert np.array_equal(decode_mask(mask_of[f"test/{NAME}.query"]), masks["query", NAME])

    # A caption is of a file name, so without one of its own (NAME.query.jpg) the query has the gallery's.
    captions = import_captions(table, tmp_path, CaptionFileSettings())
    text_of = dict(zip(*captions.read(["sample_id", "caption"]).to_pydict().values(), strict=True))
    assert text_of[f"test/{NAME}.query"] == text_of[f"test/{NAME}"] == f"{NAME}."
    entries.append({"item": f"{NAME}.query.jpg", "description": "The query."})
    (tmp_path / "test.json").write_text(json.dumps(entries))
    captions = import_captions(table, tmp_path, CaptionFileSettings())
    text_of = dict(zip(*captions.read(["sample_id", "caption"]).to_pydict().values(), strict=True))
    assert (text_of[f"test/{NAME}.query"], text_of[f"test/{NAME}"]) == ("The query.", f"{NAME}.")
    predicted = make_captions(table, tmp_path, CaptionSettings(card="rgbnt100"))
    assert (predicted.statistics["empty"], predicted.statistics["missing"]) == (0, 0)
    assert predicted.statistics["unused"] == 0

    settings = ViewSettings(split="test", height=HEIGHT, width=WIDTH)
    view = open_view(make_view(table, found, None, settings))
    rows = [view.sample_id.tolist().index(f"test/{name}") for name in (NAME, f"{NAME}.query")]
    gallery, query = (view.batch([row]) for row in rows)
    assert np.abs(query.pixels.astype(int) - gallery.pixels.astype(int)).max() > 0
    assert not np.array_equal(query.mask, gallery.mask)
