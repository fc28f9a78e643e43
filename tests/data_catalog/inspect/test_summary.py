import json
from pathlib import Path
from typing import Any

import pytest

from data_catalog.__main__ import main
from data_catalog.cards import Counts
from data_catalog.inspect.lineage import Input, TableOrigin, draw_tree, trace
from data_catalog.inspect.summary import Difference, SplitCounts, describe
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.synthetic import SyntheticSettings, synthesize
from data_catalog.views.training_view import ViewSettings, make_view
from tests.data_catalog.folders import HEIGHT, WIDTH
from tests.data_catalog.vehicle_folders import MSVR310, write_msvr310


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with a tiny MSVR310."""
    folder = tmp_path_factory.mktemp("cars")
    ingest(write_msvr310(folder), folder / "catalog", "msvr310", IngestSettings(format="msvr310"))
    return folder / "catalog"


def test_summary_counts_samples_and_names_differences_from_the_card(cars: Path) -> None:
    shown = describe(cars, "msvr310")
    assert shown.found == {
        "test": SplitCounts(samples=5, identities=2, cameras=4, queries=3, gallery=4),
        "train": SplitCounts(samples=4, identities=2, cameras=4, queries=0, gallery=0),
    }
    assert shown.card.counts["test"] == Counts(samples=1055, identities=155, queries=591, gallery=1055)
    assert shown.differences == (
        Difference(split="", what="image_size", card=(128, 256), found=(16, 32)),
        *(
            Difference(split=split, what=what, card=expected, found=found)
            for split, what, expected, found in (
                ("train", "samples", 1032, 4),
                ("train", "identities", 155, 2),
                ("test", "samples", 1055, 5),
                ("test", "identities", 155, 2),
                ("test", "queries", 591, 3),
                ("test", "gallery", 1055, 4),
            )
        ),
    )
    # Each of the queries has a match in another scene only where the gallery says so.
    warnings = {finding.check: finding.rows for finding in shown.warnings}
    scenes = {(name[:4], name[6:9]) for name in MSVR310["bounding_box_test"]}
    alone = [
        f"test/{name}"
        for name in sorted(MSVR310["query3"])
        if not any(vehicle == name[:4] and scene != name[6:9] for vehicle, scene in scenes)
    ]
    assert list(warnings.get("query_without_match", ())) == alone
    assert "missing_artifact" in {finding.check for finding in shown.errors}


def test_tables_of_the_samples_are_listed_with_their_coverage(built: Any) -> None:
    shown = describe(built.catalog, "small")
    tables = {name: built.__dict__[name] for name in ("samples", "masks", "text_features")}
    for name, table in tables.items():
        assert shown.artifacts[name].digest == table.digest
        assert shown.artifacts[name].coverage == 1.0
    assert shown.artifacts["view train"].digest == built.view.digest
    assert shown.artifacts["view train"].coverage == 1.0
    captions = built.captions.read(["caption"])["caption"].to_pylist()
    assert shown.artifacts["captions"].coverage == round(sum(map(bool, captions)) / 28, 6)


def test_quarantine_is_a_warning(own_source: Path, tmp_path: Path) -> None:
    broken = next((own_source / "RGBNT201" / "test" / "TI").iterdir())
    broken.write_bytes(b"")
    ingest(own_source, tmp_path / "catalog", "small")
    warnings = describe(tmp_path / "catalog", "small").warnings
    [message] = [warning.message for warning in warnings if warning.check == "quarantined"]
    assert f"test/TI/{broken.name} is empty (zero bytes)" in message


def test_synthetic_data_set_has_the_card_of_its_kind(tmp_path: Path) -> None:
    few = {"train_identities": 2, "validation_identities": 2, "test_identities": 2, "shots": 1}
    settings = SyntheticSettings(kind="vehicle", height=16, width=32, **few)
    synthesize(settings, tmp_path / "bench")
    ingest(tmp_path / "bench" / "RGBNT201", tmp_path / "catalog", "bench")
    shown = describe(tmp_path / "catalog", "bench")
    assert shown.card.name == "synthetic_vehicle"
    [different] = shown.differences
    assert different == Difference(split="", what="image_size", card=(32, 64), found=(16, 32))


def test_lineage_names_what_each_table_was_made_from(built: Any) -> None:
    make_view(built.samples, None, None, ViewSettings(split="train", height=HEIGHT, width=WIDTH))
    nodes = trace(built.catalog, "small")
    made_by = {node.digest: {name: entry.made_by for name, entry in node.inputs.items()} for node in nodes}
    samples, masks, captions, features = (
        f"{table.kind.value}/{table.manifest.key}"
        for table in (built.samples, built.masks, built.captions, built.text_features)
    )
    assert made_by[built.samples.digest] == {}
    assert made_by[built.masks.digest] == {"samples": samples}
    assert made_by[built.captions.digest] == {"samples": samples, "readings": None}
    assert made_by[built.text_features.digest] == {"samples": samples, "captions": captions, "clip": None}
    assert made_by[built.view.digest] == {"samples": samples, "masks": masks, "text_features": features}

    lines = draw_tree(nodes)
    assert len(lines) == len(nodes)
    [line] = [line for line in lines if built.view.digest[:12] in line]
    above = lines[: lines.index(line)]
    assert f"masks {built.masks.digest[:12]}" in line
    assert f"samples {built.samples.digest[:12]}" in line
    indent = line.index("─ ")
    parent = next(text for text in reversed(above) if len(text) - len(text.lstrip("│ ├└─")) < indent + 2)
    assert f"text_features {built.text_features.digest[:12]}" in parent
    assert "split train, height 32, width 16" in line


def test_tree_of_tables_is_drawn_with_branches() -> None:
    def node(name: str, **inputs: str | None) -> TableOrigin:
        return TableOrigin(
            name=name,
            table=name,
            key="0",
            digest=name * 12,
            rows=1,
            settings={},
            time="",
            inputs={key: Input(digest=key * 12, made_by=made_by) for key, made_by in inputs.items()},
        )

    # Masks that were imported are made from files, which are no table that is gone.
    imported = node("masks", a="a", masks=None)
    assert (
        draw_tree([node("a"), imported])[1] == "└─ masks masksmasksma  1 rows  also from masks masksmasksma"
    )
    nodes = [node("a"), node("b", a="a"), node("c", a="a", masks=None), node("d", a="a", b="b"), node("e")]
    assert draw_tree(nodes) == [
        "a aaaaaaaaaaaa  1 rows",
        "├─ b bbbbbbbbbbbb  1 rows",
        "│  └─ d dddddddddddd  1 rows  also from a aaaaaaaaaaaa",
        "└─ c cccccccccccc  1 rows  also from masks masksmasksma (gone)",
        "e eeeeeeeeeeee  1 rows",
    ]


def test_show_prints_card_and_found_side_by_side(cars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "msvr310", "--catalog", str(cars), "--lineage"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["test", "queries", "591", "3", "differs"] in lines
    assert ["test", "cameras", "-", "4"] in lines
    assert any(line[:1] == ["samples"] and "(format" in line for line in lines)


def test_status_of_checks_is_1_for_errors(cars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["checks", "msvr310", "--catalog", str(cars), "--samples-per-identity", "3"]
    assert main([*command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {finding["check"] for finding in report["errors"]} == {"missing_artifact"}
    few = next(finding for finding in report["warnings"] if finding["check"] == "few_samples")
    assert few["rows"] == sorted(f"train/{name}" for name in MSVR310["bounding_box_train"])
    assert "fewer samples than the 3" in few["message"]
    assert main([*command, "--no-images"]) == 1
    assert "few_samples: 2 training identities" in capsys.readouterr().out


def test_status_of_verify_is_1_for_a_changed_byte(
    cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", "msvr310", "--catalog", str(cars)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == []
    shard = next(cars.rglob("samples/*/shard-00000.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(command) == 1
    assert "shard-00000.parquet: its bytes changed" in capsys.readouterr().out
    shard.write_bytes(whole)
