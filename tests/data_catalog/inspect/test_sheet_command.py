"""What the sheet says of samples: the cameras of the files, and tokens of the CLIP of the text features."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_catalog.__main__ import main
from data_catalog.captions.caption_table import make_captions
from data_catalog.captions.text_feature_table import make_text_features
from data_catalog.commands import sheet
from data_catalog.inspect import contact_sheet
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples.camera_numbers import first_camera
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from stmi.clip.clip_files import CONFIG_FILE, PROJECT, patch_size
from stmi.errors import ClipFileError
from tests.data_catalog.folders import load_fake_tower
from tests.data_catalog.vehicle_folders import write_msvr310, write_rgbnt100


@pytest.fixture
def samples(source: Path, tmp_path: Path) -> Table:
    return ingest(source, tmp_path / "catalog", "small", IngestSettings())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the next sheet shows: the cells and the settings."""
    found: dict[str, Any] = {}
    draw_cell, draw_sheet = contact_sheet.draw_cell, sheet.draw_sheet

    def cell(shown: Any) -> Any:
        found.setdefault("cells", []).append(shown)
        return draw_cell(shown)

    def whole(*arguments: Any) -> Any:
        found["settings"] = arguments[-1]
        return draw_sheet(*arguments)

    monkeypatch.setattr(contact_sheet, "draw_cell", cell)
    monkeypatch.setattr(sheet, "draw_sheet", whole)
    return found


def call(samples: Table, *more: str) -> None:
    out = Path(samples.catalog) / "sheet.png"
    assert main(["sheet", "small", "--catalog", samples.catalog, "--out", str(out), *more]) == 0


def test_sheet_counts_cameras_as_the_files_do(samples: Table, drawn: dict[str, Any]) -> None:
    call(samples, "--count", "28")
    assert len(drawn["cells"]) == 28
    for cell in drawn["cells"]:
        assert f"camera {cell.name.split('_cam')[1][0]}" in cell.labels.split(", ")
    # A table of an earlier version does not say where its files begin to count; its layout does.
    manifest = samples.manifest
    created = {name: value for name, value in manifest.created.items() if name != "first_camera"}
    assert first_camera(replace(samples, manifest=manifest.model_copy(update={"created": created}))) == 1


def test_each_layout_says_where_its_files_begin_to_count(tmp_path: Path) -> None:
    write_msvr310(tmp_path)
    write_rgbnt100(tmp_path)
    for layout, first in (("msvr310", 0), ("rgbnt100", 1)):
        table = ingest(tmp_path, tmp_path / "catalog", layout, IngestSettings(format=layout))
        assert first_camera(table) == first


@pytest.mark.parametrize(("patch", "expected"), [(8, 8), (4, 4), (None, 16)])
def test_tokens_are_those_of_the_clip_of_the_text_features(
    samples: Table, source: Path, tmp_path: Path, drawn: dict[str, Any], patch: int | None, expected: int
) -> None:
    import_masks(samples, source / "true_masks")
    clip = tmp_path / "clip"
    clip.mkdir()
    vision = {} if patch is None else {"patch_size": patch}
    (clip / CONFIG_FILE).write_text(json.dumps({"model_cfg": {"vision_cfg": vision}}))
    make_text_features(make_captions(samples, source / "readings"), clip, load=load_fake_tower)
    call(samples, "--count", "2")
    assert drawn["settings"].patch_size == expected
    call(samples, "--count", "2", "--patch-size", "2")
    assert drawn["settings"].patch_size == 2


def test_patch_of_a_clip_is_read_from_its_folder_or_its_name(tmp_path: Path) -> None:
    assert patch_size(PROJECT / "stmi" / "demo_clip") == 8
    assert patch_size("ViT-B-32/openai") == 32
    assert patch_size("ViT-B-16-quickgelu/openai") == 16
    for gone in (tmp_path / "gone", tmp_path):
        assert patch_size(gone) == 16
    for content in ("", "{}", '{"model_cfg": 3}'):
        (tmp_path / "open_clip_config.json").write_text(content)
        with pytest.raises(ClipFileError, match=r"open_clip_config\.json is no config of a CLIP"):
            patch_size(tmp_path)


def test_distinct_captions_are_counted_over_the_whole_table(
    samples: Table, source: Path, tmp_path: Path
) -> None:
    counts = []
    for per_shard in (3, 512):
        table = ingest(
            source, tmp_path / f"catalog{per_shard}", "small", IngestSettings(samples_per_shard=per_shard)
        )
        captions = make_captions(table, source / "readings")
        features = make_text_features(captions, "fake", load=load_fake_tower)
        counts.append(features.statistics["distinct"])
        assert counts[-1] == len(set(captions.read(["caption"])["caption"].to_pylist()))
    assert counts[0] == counts[1]
