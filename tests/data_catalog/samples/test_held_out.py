import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_catalog.captions.caption_files import find_caption_files
from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.errors import CatalogError
from data_catalog.formats import SourceSample
from data_catalog.samples.held_out import hold_out
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from tests.data_catalog.vehicle_folders import write_rgbnt100, write_side_by_side


def sample(split: str, identity: int, camera: int, scene: int = -1) -> SourceSample:
    tested = split == "test"
    return SourceSample(
        f"{split}/{identity:04d}_{camera}_{scene}", split, identity, camera, scene, tested, tested, {}
    )


SAMPLES = [
    *(sample("train", identity, camera) for identity in range(1, 9) for camera in (0, 1)),
    sample("train", 9, 0),
    *(sample("test", 20, camera) for camera in (0, 1)),
]


def test_whole_identities_become_queries_and_gallery_and_nothing_else_changes() -> None:
    held = hold_out(SAMPLES, 3)
    moved = [one for one in held if one.split == "val"]
    assert len({one.identity for one in moved}) == 3
    assert len(moved) == 6
    assert all(one.is_query and one.is_gallery for one in moved)
    assert not {one.identity for one in moved} & {one.identity for one in held if one.split == "train"}
    back = [
        replace(one, split="train", is_query=False, is_gallery=False) if one in moved else one for one in held
    ]
    assert back == SAMPLES


def test_choice_depends_on_the_identities_alone() -> None:
    def chosen(samples: list[SourceSample]) -> set[int]:
        return {one.identity for one in hold_out(samples, 3) if one.split == "val"}

    assert chosen(SAMPLES) == chosen(SAMPLES[::-1])
    assert chosen(SAMPLES) == chosen([replace(one, files={"RGB": "x"}) for one in SAMPLES])


def test_identity_without_a_match_is_never_chosen() -> None:
    assert 9 not in {one.identity for one in hold_out(SAMPLES, 7) if one.split == "val"}
    # With scenes a match lies in another scene, whatever the camera.
    scenes = [
        sample("train", identity, 0, scene) for identity in range(5) for scene in range(1 + identity % 2)
    ]
    assert {one.identity for one in hold_out(scenes, 2) if one.split == "val"} == {1, 3}


def test_none_held_out_changes_nothing() -> None:
    assert list(hold_out(SAMPLES, 0)) == SAMPLES


@pytest.mark.parametrize(
    ("samples", "identities", "message"),
    [
        ([*SAMPLES, sample("val", 30, 0)], 1, "a split val of its own"),
        (SAMPLES, 9, "8 have two cameras"),
        (SAMPLES[:4], 1, "two identities must be left"),
    ],
)
def test_what_cannot_be_held_out_is_refused(
    samples: list[SourceSample], identities: int, message: str
) -> None:
    with pytest.raises(CatalogError, match=message):
        hold_out(samples, identities)


@pytest.fixture
def samples(tmp_path: Path) -> Table:
    """RGBNT100 with one of its training identities held out."""
    root = write_rgbnt100(tmp_path)
    for camera in (1, 2):
        name = f"0003_c000{camera}_000.jpg"
        write_side_by_side(root / "rgbir" / "bounding_box_train" / name, np.random.default_rng(0))
    settings = IngestSettings(format="rgbnt100", validation_identities=1)
    return ingest(root, tmp_path / "catalog", "rgbnt100", settings)


def test_ingest_makes_the_split_and_captions_are_found_in_the_training_file(
    samples: Table, tmp_path: Path
) -> None:
    rows = samples.read(["sample_id", "split", "is_query", "is_gallery"]).to_pylist()
    held = [row for row in rows if row["split"] == "val"]
    assert held
    assert all(row["sample_id"].startswith("train/") and row["is_query"] for row in held)
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text("[]")
    files = find_caption_files(samples, tmp_path, None)
    assert {path for path, *_ in files} == set(tmp_path.glob("*.json"))


def test_readings_of_identities_that_are_held_out_are_found_in_the_training_file(
    samples: Table, tmp_path: Path
) -> None:
    reading = {"JOINT": {"colour": {"value": "red", "confidence": 1.0}}}
    ids = samples.read(["sample_id"])["sample_id"].to_pylist()
    for split in ("train", "test"):
        items = [id_.partition("/")[2] for id_ in ids if id_.startswith(f"{split}/")]
        lines = [json.dumps({"item": f"{item}.jpg", "readings": reading}) for item in items]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    captions = make_captions(samples, tmp_path, CaptionSettings(card="synthetic_vehicle"))
    assert captions.statistics["missing"] == captions.statistics["unused"] == 0
    assert "" not in captions.read(["caption"])["caption"].to_pylist()
