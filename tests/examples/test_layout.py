"""The example of a data layout, used from the command line in a folder that holds it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_catalog.samples.images import decode_mask
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import find_table
from tests.examples.command_line import EXAMPLES, call, read_error, read_json

SHOTS = {
    "train": ("0002_c1_000451", "0002_c3_000452", "0007_c1_000453", "0007_c2_000454"),
    "query": ("1501_c1_000001", "1502_c2_000002"),
    "gallery": ("1501_c6_000003", "1502_c1_000004", "1502_c1_000005"),
}
INGEST = ("-m", "data_catalog", "ingest", "--source", "data", "--catalog", "catalog", "--json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the example, a data set in its layout, and masks of it."""
    shutil.copy(EXAMPLES / "market_layout.py", tmp_path)
    rng = np.random.default_rng(0)
    for part, shots in SHOTS.items():
        (tmp_path / "data" / part).mkdir(parents=True)
        for shot in shots:
            for modality in ("RGB", "NIR", "TIR"):
                pixels = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / f"{shot}_{modality}.jpg")
    (tmp_path / "data" / "train" / "notes.txt").write_text("no image")
    return tmp_path


def test_layout_gives_labels_of_names_and_bytes_of_files(folder: Path) -> None:
    found = read_json(call(*INGEST, "--format", "market_layout:MARKET", folder=folder))
    assert (found["dataset"], found["samples"], found["cameras"]) == ("market", 9, [0, 1, 2, 5])
    assert found["splits"] == {
        "train": {"samples": 4, "identities": 2},
        "test": {"samples": 5, "identities": 2},
    }
    assert [fault["file"] for fault in found["quarantined"]] == ["train/notes.txt"]
    rows = find_table(folder / "catalog", "market", TableKind.SAMPLES).read().to_pylist()
    expected = {
        f"{'train' if part == 'train' else 'test'}/{part}_{shot}": (part, shot)
        for part, shots in SHOTS.items()
        for shot in shots
    }
    assert [row["sample_id"] for row in rows] == sorted(expected)
    for row in rows:
        part, shot = expected[row["sample_id"]]
        assert (row["identity"], row["camera_id"]) == (int(shot[:4]), int(shot[6]) - 1)
        assert (row["is_query"], row["is_gallery"]) == (part == "query", part == "gallery")
        for modality in ("RGB", "NIR", "TIR"):
            assert row[modality.lower()] == (folder / "data" / part / f"{shot}_{modality}.jpg").read_bytes()


def test_masks_of_the_layout_are_imported_from_their_folders(folder: Path) -> None:
    samples = read_json(call(*INGEST, "--format", "market_layout:MARKET", folder=folder))
    for part, shots in SHOTS.items():
        masks = folder / "data" / "mask" / ("train" if part == "train" else "gallery")
        masks.mkdir(parents=True, exist_ok=True)
        for shot in shots:
            mask = np.zeros((16, 8), dtype=np.uint8)
            mask[:, int(shot[6]) :] = 1
            np.save(masks / f"{part}_{shot}.npy", mask)
    # A table may come from somebody else: what it names is not imported.
    (folder / "market_layout.py").write_text("raise SystemExit('was imported')")
    arguments = ("masks", "--catalog", "catalog", "--segmenter", "files", "--json")
    assert read_json(call("-m", "data_catalog", *arguments, folder=folder))["coverage"] == 1
    rows = find_table(folder / "catalog", "market", TableKind.MASKS).read().to_pylist()
    assert len(rows) == samples["rows"]
    for row in rows:
        background = int(row["sample_id"].partition("_c")[2][0])
        assert (decode_mask(row["mask"]) == (np.arange(8) >= background)).all()


def test_corrected_layout_makes_a_new_table(folder: Path) -> None:
    def ingest() -> dict:
        return read_json(call(*INGEST, "--format", "market_layout:MARKET", folder=folder))

    first = ingest()
    assert ingest() == first | {"reused": True, "seconds": pytest.approx(0, abs=60)}
    module = folder / "market_layout.py"
    module.write_text(module.read_text().replace('int(name["camera"]) - 1', 'int(name["camera"])'))
    corrected = ingest()
    assert (corrected["reused"], corrected["cameras"]) == (False, [1, 2, 3, 6])
    assert corrected["key"] != first["key"]


def test_name_that_is_no_layout_is_refused_in_one_line(folder: Path) -> None:
    error = read_error(call(*INGEST, "--format", "market_layout:NAME", folder=folder))
    assert error.startswith("data_catalog ingest: format market_layout:NAME: expected a SourceFormat ")
    assert not (folder / "catalog").exists()
