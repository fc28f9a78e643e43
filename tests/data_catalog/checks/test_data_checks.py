import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_catalog.__main__ import main
from data_catalog.cards import load_card
from data_catalog.checks.data_checks import CheckSettings, junk_rule, run_checks
from data_catalog.checks.findings import Finding
from data_catalog.checks.image_hashes import (
    make_image_hashes,
)
from data_catalog.checks.newest_tables import NewestTables, find_newest_tables
from data_catalog.checks.stored_reports import load_or_run_checks
from data_catalog.errors import NotWritableError
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.synthetic import SyntheticSettings, synthesize
from data_catalog.tables.digests import json_digest
from data_catalog.tables.schemas import MASKS_SCHEMA, SAMPLES_SCHEMA, TableKind
from data_catalog.tables.table import Manifest, Table
from tests.data_catalog.folders import image_path, sample_ids


class RowsTable(Table):
    """A table whose rows are in memory."""

    def read(self, columns: Any = None) -> pa.Table:
        return self.rows if columns is None else self.rows.select(list(columns))  # type: ignore[attr-defined]


def make_table(rows: pa.Table, kind: TableKind, **statistics: Any) -> Table:
    manifest = Manifest(
        table=kind,
        dataset="made_up",
        key="0" * 16,
        schema_version=kind.schema_version,
        rows=rows.num_rows,
        shards=(),
        digest="0" * 64,
        inputs={},
        settings={"format": "rgbnt201"},
        statistics=statistics,
        created={"time": "2026-01-01"},
        seconds=0.0,
    )
    table = RowsTable("nowhere", manifest)
    object.__setattr__(table, "rows", rows)
    return table


# Identity, camera, scene, query, gallery.
Row = tuple[int, int, int, bool, bool]


def make_samples(**splits: list[Row]) -> Table:
    rows = [
        {
            "sample_id": f"{split}/{identity:04d}_{camera}_{scene}_{number}",
            "split": split,
            "identity": identity,
            "camera_id": camera,
            "scene_id": scene,
            "is_query": is_query,
            "is_gallery": is_gallery,
            "digest": f"{split}/{number}",
        }
        for split, samples in splits.items()
        for number, (identity, camera, scene, is_query, is_gallery) in enumerate(samples)
    ]
    names = list(rows[0])
    schema = pa.schema([SAMPLES_SCHEMA.field(name) for name in names])
    return make_table(
        pa.Table.from_pylist(rows, schema=schema), TableKind.SAMPLES, splits=dict.fromkeys(splits)
    )


def check(samples: Table, masks: Table | None = None, **settings: Any) -> dict[str, tuple[str, Finding]]:
    """Severity and finding of each check, by its name; the made-up data set has all views."""
    views = dict.fromkeys(samples.statistics["splits"], samples)
    tables = NewestTables(samples, masks, None, None, views)
    report = run_checks(tables, CheckSettings(images=False, **settings))
    found = [("error", finding) for finding in report.errors]
    found += [("warning", finding) for finding in report.warnings]
    return {finding.check: (severity, finding) for severity, finding in found}


TRAIN: list[Row] = [(1, camera, -1, False, False) for camera in range(4)]


def test_query_whose_matches_are_all_junk_is_named() -> None:
    test = [
        (11, 0, -1, True, True),
        (11, 0, -1, True, True),
        (12, 0, -1, True, True),
        (12, 1, -1, True, True),
        (13, 2, -1, True, False),
    ]
    severity, finding = check(make_samples(train=TRAIN, test=test))["query_without_match"]
    assert severity == "warning"
    assert finding.rows == ("test/0011_0_-1_0", "test/0011_0_-1_1", "test/0013_2_-1_4")
    assert finding.message.startswith(
        "3 of 5 queries of split 'test' have no match in the gallery under another"
    )


def test_queries_without_match_are_those_of_a_naive_loop_for_both_rules(rng: np.random.Generator) -> None:
    for junk, column in (("camera", 1), ("scene", 2)):
        test = [
            (
                int(rng.integers(20, 30)),
                *map(int, rng.integers(0, 3, 2)),
                bool(rng.random() < 0.5),
                bool(rng.random() < 0.7),
            )
            for _ in range(40)
        ]
        expected = [
            f"test/{query[0]:04d}_{query[1]}_{query[2]}_{number}"
            for number, query in enumerate(test)
            if query[3]
            and not any(
                other[4] and other[0] == query[0] and other[column] != query[column] for other in test
            )
        ]
        assert expected
        found = check(make_samples(train=TRAIN, test=test), junk=junk)
        assert list(found["query_without_match"][1].rows) == expected


def test_split_in_which_nothing_can_be_measured_is_an_error() -> None:
    alone = [(11, 0, -1, True, True), (12, 1, -1, True, True)]
    assert check(make_samples(train=TRAIN, test=alone))["query_without_match"][0] == "error"
    assert check(make_samples(train=TRAIN, test=[(11, 0, -1, False, True)]))["no_queries"][0] == "error"


def test_identities_with_few_samples_and_in_two_splits_are_named() -> None:
    train = [*TRAIN, (2, 0, -1, False, False), (3, 0, -1, False, False), (3, 1, -1, False, False)]
    test = [(3, 0, -1, True, True), (3, 1, -1, True, True)]
    found = check(make_samples(train=train, test=test), samples_per_identity=2)
    assert found["few_samples"][0] == "warning"
    assert found["few_samples"][1].rows == ("train/0002_0_-1_4",)
    assert "2 has 1" in found["few_samples"][1].message
    severity, finding = found["identity_in_two_splits"]
    assert severity == "error"
    assert len(finding.rows) == 4
    assert "3 in test and train" in finding.message


def test_sound_data_set_has_no_finding_but_the_missing_tables() -> None:
    test = [(identity, camera, -1, True, True) for identity in range(11, 23) for camera in (0, 1)]
    assert set(check(make_samples(train=TRAIN, test=test))) == {"missing_artifact"}


def test_masks_near_empty_near_full_and_missing_are_named() -> None:
    fractions = [0.0, 0.005, 0.3, 0.96, 1.0, 1.0]
    ids = [f"train/{number}" for number in range(6)]
    columns = [list(range(6)), ids, [b""] * 6, fractions, [1.0] * 6, ["RGB"] * 5 + ["missing"]]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, MASKS_SCHEMA, strict=True)]
    masks = make_table(pa.table(arrays, schema=MASKS_SCHEMA), TableKind.MASKS)
    found = check(make_samples(train=TRAIN), masks)
    rows = {name: finding.rows for name, (_, finding) in found.items()}
    assert rows["near_empty_mask"] == ("train/0", "train/1")
    assert rows["near_full_mask"] == ("train/3", "train/4")
    assert rows["missing_mask"] == ("train/5",)


def test_limits_of_the_masks_are_options_of_the_command(
    built: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["checks", "small", "--catalog", str(built.catalog), "--no-images", "--json"]
    main([*start, "--near-empty", "0", "--near-full", "0"])
    warnings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)["warnings"]}
    assert "near_empty_mask" not in warnings
    assert len(warnings["near_full_mask"]["rows"]) == len(built.samples)
    for option, value, message in (
        ("--near-full", "2", "near_full: Input should be less than or equal to 1"),
        ("--duplicate-bits", "65", "duplicate_bits: Input should be less than or equal to 64"),
    ):
        assert main([*start, option, value]) == 2
        assert message in capsys.readouterr().err


def test_tables_that_are_missing_are_named(built: Any) -> None:
    report = run_checks(find_newest_tables(built.catalog, "small"), CheckSettings(images=False))
    missing = [finding.message for finding in report.errors if finding.check == "missing_artifact"]
    assert not any("'train'" in message for message in missing)
    for split in {"val", "test"} - set(find_newest_tables(built.catalog, "small").views):
        assert f"split '{split}' has no view; run `python -m data_catalog view --split {split}`" in missing
    bare = NewestTables(built.samples, None, None, None, {})
    errors = [finding.message for finding in run_checks(bare, CheckSettings(images=False)).errors]
    assert [message.split(";")[0] for message in errors] == [
        *(f"split '{split}' has no view" for split in ("test", "train", "val")),
        *(f"there is no {name} table" for name in ("masks", "captions", "text_features")),
    ]


def test_view_of_other_masks_than_the_newest_is_named(built: Any) -> None:
    tables, settings = find_newest_tables(built.catalog, "small"), CheckSettings(images=False)
    assert "outdated_artifact" not in {found.check for found in run_checks(tables, settings).warnings}
    newer = built.masks.manifest.model_copy(update={"digest": "0" * 64})
    changed = replace(tables, masks=replace(built.masks, manifest=newer))
    [found] = [f for f in run_checks(changed, settings).warnings if f.check == "outdated_artifact"]
    assert found.message.startswith(
        f"view train was made from other masks ({built.masks.digest[:12]}) than the"
    )
    assert "run `python -m data_catalog view` again" in found.message


def test_report_is_made_once_for_the_same_tables_and_settings(built: Any) -> None:
    tables, settings = find_newest_tables(built.catalog, "small"), CheckSettings(images=False)
    expected = run_checks(tables, settings)
    assert expected.errors
    assert load_or_run_checks(tables, settings) == expected
    [file] = Path(built.catalog).glob("small/checks/*.json")
    stored = json.loads(file.read_text())
    nothing = {"errors": [], "warnings": []}
    for changed in (
        file.read_text()[:-20],
        json.dumps(stored | {"report": nothing}),
        "{}",
        json.dumps(nothing),
    ):
        file.write_text(changed)
        assert load_or_run_checks(tables, settings) == expected
    assert json.loads(file.read_text()) == stored

    # A stored report that no check would make shows which calls read it.
    file.write_text(json.dumps({"report": nothing, "seal": json_digest(nothing)}))
    assert not load_or_run_checks(tables, settings).errors
    assert load_or_run_checks(tables, CheckSettings(images=False, samples_per_identity=8)).errors
    assert load_or_run_checks(replace(tables, masks=None), settings).errors
    assert len(list(file.parent.iterdir())) == 3


def test_report_depends_on_the_junk_rule_of_the_card(built: Any) -> None:
    tables = find_newest_tables(built.catalog, "small")

    def count_reports(junk: Literal["camera", "scene"] | None) -> int:
        load_or_run_checks(tables, CheckSettings(images=False, junk=junk))
        return len(list(Path(built.catalog).glob("small/checks/*.json")))

    # Without a card the rule is `camera`.
    before = count_reports(None)
    assert count_reports("camera") == before
    assert count_reports("scene") == before + 1
    manifest = built.samples.manifest.model_copy(update={"dataset": "msvr310"})
    vehicles = replace(built.samples, manifest=manifest)
    assert load_card("msvr310").protocol.junk == "scene"
    assert junk_rule(vehicles, CheckSettings()) == "scene"
    assert junk_rule(vehicles, CheckSettings(junk="camera")) == "camera"


def test_catalog_that_cannot_be_written_to_is_checked_too(
    built: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = tmp_path / "catalog"
    shutil.copytree(built.catalog, catalog, ignore=shutil.ignore_patterns("checks", "image_hashes"))
    tables = find_newest_tables(catalog, "small")
    # A file is in the way of the folder, so this fails whatever rights the user has.
    (catalog / "small" / "checks").touch()
    expected = run_checks(tables, CheckSettings(images=False))
    assert load_or_run_checks(tables, CheckSettings(images=False)) == expected
    [record] = caplog.records
    assert record.getMessage().startswith(
        "the report of the checks is not stored, so every run makes its own: "
    )

    (catalog / "small" / "image_hashes").touch()
    report = load_or_run_checks(tables, CheckSettings())
    assert report.errors == expected.errors
    assert report.warnings[:-1] == expected.warnings
    assert report.warnings[-1].check == "duplicates_not_checked"
    assert "image_hashes" in report.warnings[-1].message
    with pytest.raises(NotWritableError):
        run_checks(tables)


def test_same_image_under_two_identities_is_named(own_source: Path, tmp_path: Path) -> None:
    first, other, same = (
        next(name for name in sample_ids() if name.startswith(start))
        for start in ("train/000001_cam1", "train/000002_cam2", "train/000001_cam2")
    )
    rng = np.random.default_rng(3)
    for modality in range(3):
        # A scene with shapes, saved twice at different qualities: a copy that is not the same file.
        pixels = np.kron(rng.integers(0, 256, (4, 2, 1)), np.ones((8, 8, 3))).astype(np.uint8)
        for name, quality in ((first, 95), (other, 80), (same, 90)):
            Image.fromarray(pixels).save(image_path(own_source, name, modality), quality=quality)
    samples = ingest(own_source, tmp_path / "catalog", "small", IngestSettings())
    tables = find_newest_tables(tmp_path / "catalog", "small")
    report = run_checks(tables)
    [finding] = [finding for finding in report.warnings if finding.check == "duplicate_images"]
    # The two samples of identity 1 look alike, too, as they may; each is a pair with that of identity 2.
    assert set(finding.rows) == {first, same, other}
    assert finding.message.startswith("2 pairs of samples show the same image and have different identities")
    assert " in RGB and NIR and TIR" in finding.message
    assert make_image_hashes(samples).reused


def test_copy_in_one_modality_is_the_only_pair_of_the_synthetic_data_set(tmp_path: Path) -> None:
    settings = SyntheticSettings(train_identities=10, validation_identities=2, test_identities=4, shots=2)
    synthesize(settings, tmp_path)
    names = sorted(path.name for path in (tmp_path / "RGBNT201" / "train_171" / "RGB").iterdir())
    identities = sorted({name[:6] for name in names})
    pairs = {}
    # By day, and at night, where RGB shows nothing.
    for number, (modality, camera, quality) in enumerate([("RGB", 1, 80), ("NI", 4, 80), ("RGB", 4, None)]):
        folder = tmp_path / "RGBNT201" / "train_171" / modality
        source, copy = (
            next(folder.glob(f"{identity}_cam{camera}_*"))
            for identity in identities[2 * number : 2 * number + 2]
        )
        if quality is None:
            shutil.copy(source, copy)
        else:
            Image.open(source).save(copy, quality=quality)
        name = modality.replace("NI", "NIR")
        pairs[f"train/{source.stem} of {int(source.stem[:6])}"] = (
            f"train/{copy.stem} of {int(copy.stem[:6])} in {name}"
        )
    ingest(tmp_path / "RGBNT201", tmp_path / "catalog", "synthetic")
    report = run_checks(find_newest_tables(tmp_path / "catalog", "synthetic"))
    [finding] = [finding for finding in report.warnings if finding.check == "duplicate_images"]
    named = finding.message.partition("(")[2].partition(")")[0]
    assert dict(pair.split(" and ") for pair in named.split(", ")) == pairs
