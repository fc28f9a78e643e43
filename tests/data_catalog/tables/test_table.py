import hashlib
import json
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_catalog.errors import CatalogError
from data_catalog.storage.filesystems import open_root, write_atomically
from data_catalog.tables import building
from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE, build_table
from data_catalog.tables.digests import content_digest
from data_catalog.tables.schemas import MASKS_SCHEMA, TableKind
from data_catalog.tables.shards import ShardMaker
from data_catalog.tables.table import Table, find_table, list_tables, open_table


@dataclass(frozen=True)
class StubMaker(ShardMaker[dict[str, int]]):
    """Makes shards of two rows; refuses the second one while `refuse` exists."""

    refuse: Path

    def make(self, spec: dict[str, int]) -> tuple[pa.Table, dict[str, Any]]:
        number = spec["number"]
        if number == 1 and self.refuse.exists():
            raise CatalogError(f"{self.refuse} is in the way")
        index = [2 * number, 2 * number + 1]
        columns = [
            index,
            [f"train/{i}" for i in index],
            [bytes([i]) for i in index],
            [0.5, 0.5],
            [1, 1],
            ["", ""],
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, MASKS_SCHEMA, strict=True)]
        return pa.table(arrays, schema=MASKS_SCHEMA), {"number": number}


def build(catalog: Path | str, refuse: Path, **changes: Any) -> Table:
    arguments: dict[str, Any] = {
        "catalog": catalog,
        "dataset": "stub",
        "kind": TableKind.MASKS,
        "settings": {"stub": 1},
        "inputs": {"samples": "0" * 64},
        "specs": [{"number": number} for number in range(4)],
        "maker": StubMaker(refuse),
        "summarise": lambda shards: {"numbers": [shard["number"] for shard in shards]},
    }
    return build_table(**(arguments | changes))


def test_interrupted_build_leaves_no_table_and_makes_what_is_missing(tmp_path: Path) -> None:
    refuse = tmp_path / "refuse"
    refuse.touch()
    with pytest.raises(CatalogError, match="in the way"):
        build(tmp_path / "catalog", refuse)
    assert list_tables(tmp_path / "catalog", "stub") == []
    shards = sorted((tmp_path / "catalog").rglob("shard-*.parquet"))
    assert "shard-00001.parquet" not in [path.name for path in shards]

    refuse.unlink()
    before = {path: path.stat().st_mtime_ns for path in shards}
    seen: list[tuple[int, int]] = []
    table = build(tmp_path / "catalog", refuse, progress=lambda done, total: seen.append((done, total)))
    assert not table.reused
    assert seen == [(done, 4) for done in range(len(shards), 5)]
    assert {path: path.stat().st_mtime_ns for path in shards} == before
    assert table.statistics == {"numbers": [0, 1, 2, 3]}
    assert not list((tmp_path / "catalog").rglob("*.partial"))

    # And again, with the manifest and one shard lost, and one shard cut short.
    digest, folder = table.digest, Path(table.path)
    (folder / "manifest.json").unlink()
    (folder / "shard-00002.parquet").unlink()
    cut = folder / "shard-00003.parquet"
    cut.write_bytes(cut.read_bytes()[:100])
    assert open_table(table.catalog, "stub", TableKind.MASKS, table.manifest.key) is None
    again = build(tmp_path / "catalog", refuse)
    assert again.digest == digest
    assert again.read().equals(pa.concat_tables([StubMaker(refuse).make({"number": i})[0] for i in range(4)]))


@dataclass(frozen=True)
class LightMaker(StubMaker):
    """Says in every shard which process made it; takes `seconds` for each."""

    is_light = True
    seconds: float = 0.0

    def make(self, spec: dict[str, int]) -> tuple[pa.Table, dict[str, Any]]:
        time.sleep(self.seconds)
        rows, statistics = super().make(spec)
        return rows, statistics | {"process": os.getpid()}


@pytest.mark.parametrize(("seconds", "limit", "made_here"), [(0.0, "600", 4), (0.2, "0.1", 1)])
def test_shards_are_made_in_this_process_while_that_takes_little_time(
    seconds: float,
    limit: str,
    made_here: int,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LOCAL_SECONDS_VARIABLE, limit)
    maker = LightMaker(tmp_path / "no", seconds)
    table = build(tmp_path, tmp_path / "no", maker=maker, summarise=lambda shards: {"shards": shards})
    shards = table.statistics["shards"]
    assert [shard["number"] for shard in shards] == [0, 1, 2, 3]
    assert [shard["process"] == os.getpid() for shard in shards] == [True] * made_here + [False] * (
        4 - made_here
    )
    assert table.digest == build(tmp_path / "other", tmp_path / "no").digest


@dataclass(frozen=True)
class FilesMaker(LightMaker):
    @property
    def source_folder(self) -> Path:
        return self.refuse.parent


@pytest.mark.parametrize(("maker", "made_here"), [(FilesMaker, True), (LightMaker, False)])
def test_files_that_no_machine_with_a_cpu_sees_are_read_in_this_process(
    maker: type[LightMaker],
    made_here: bool,
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LOCAL_SECONDS_VARIABLE, "0")
    monkeypatch.setattr(building, "nodes_with", lambda folder: set())
    table = build(
        tmp_path,
        tmp_path / "no",
        maker=maker(tmp_path / "no", seconds=0.01),
        summarise=lambda shards: {"shards": shards},
    )
    # The first shard shows how long one takes.
    made = [shard["process"] == os.getpid() for shard in table.statistics["shards"]]
    assert made == [True, *[made_here] * 3]


def test_local_seconds_that_are_no_number_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCAL_SECONDS_VARIABLE, "ten")
    with pytest.raises(CatalogError, match="DATA_CATALOG_LOCAL_SECONDS=ten: expected a number of seconds"):
        build(tmp_path, tmp_path / "no")


def test_all_shards_can_be_made_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    assert build(tmp_path, tmp_path / "no").statistics == {"numbers": [0, 1, 2, 3]}


def test_rows_are_sorted_and_digests_are_those_of_the_shards(built: Any) -> None:
    for table in (built.samples, built.masks, built.captions, built.text_features, built.view):
        rows = table.read()
        assert rows["sample_index"].to_pylist() == sorted(rows["sample_index"].to_pylist())
        for number, shard in enumerate(table.manifest.shards):
            assert shard.sha256 == hashlib.sha256((Path(table.path) / shard.file).read_bytes()).hexdigest()
            assert shard.content == content_digest(table.read_shard(number))
            assert shard.rows == table.read_shard(number).num_rows


def test_digest_is_the_sha256_of_the_documented_json(built: Any) -> None:
    manifest = json.loads((Path(built.masks.path) / "manifest.json").read_text())
    text = json.dumps(
        {
            "inputs": manifest["inputs"],
            "schema_version": 1,
            "settings": manifest["settings"],
            "shards": [shard["content"] for shard in manifest["shards"]],
            "table": "masks",
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    assert manifest["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert manifest["inputs"] == {"samples": built.samples.digest}


def test_content_digest_depends_on_values_and_types_alone() -> None:
    rows = pa.table({"a": pa.array([1, 2, 3]), "b": pa.array(["x", "y", "z"])})
    digest = content_digest(rows)
    in_parts = pa.concat_tables([rows.slice(0, 1), rows.slice(1)])
    assert content_digest(in_parts) == digest
    assert content_digest(rows.replace_schema_metadata({b"made": b"today"})) == digest
    assert content_digest(rows.set_column(0, "a", pa.array([1, 2, 4]))) != digest
    assert content_digest(rows.set_column(0, "a", pa.array([1, 2, 3], pa.int32()))) != digest


def test_newest_table_with_the_wanted_inputs_and_settings_is_found(tmp_path: Path) -> None:
    one_shard = [{"number": 0}]
    old = build(tmp_path, tmp_path / "no", specs=one_shard, settings={"stub": 1})
    new = build(tmp_path, tmp_path / "no", specs=one_shard, settings={"stub": 2})
    assert find_table(tmp_path, "stub", TableKind.MASKS).digest == new.digest
    assert find_table(tmp_path, "stub", TableKind.MASKS, settings={"stub": 1}).digest == old.digest
    assert find_table(tmp_path, "stub", TableKind.MASKS, key=old.manifest.key).digest == old.digest
    with pytest.raises(CatalogError, match=r"made from samples 1111.*run `python -m data_catalog masks`"):
        find_table(tmp_path, "stub", TableKind.MASKS, inputs={"samples": "1111"})
    assert build(tmp_path, tmp_path / "no", specs=one_shard, settings={"stub": 1}).reused


def test_table_handle_travels_to_other_processes(built: Any) -> None:
    built.samples.read(["sample_id"])
    copy = pickle.loads(pickle.dumps(built.samples))
    assert copy.read().equals(built.samples.read())


def test_damaged_manifest_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "small" / "masks" / "abc"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CatalogError, match=r"abc/manifest\.json is not a manifest of this version \(table"):
        open_table(tmp_path, "small", TableKind.MASKS, "abc")


@pytest.mark.parametrize("dataset", ["", "../up", "a/b", ".hidden"])
def test_dataset_name_that_is_no_folder_name_is_refused(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(CatalogError, match="cannot name a folder"):
        build(tmp_path, tmp_path / "no", dataset=dataset)


def test_failed_write_leaves_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    filesystem, root = open_root(tmp_path)
    (tmp_path / "file").mkdir()
    with pytest.raises(CatalogError, match="file could not be written"):
        write_atomically(filesystem, f"{root}/file", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_uri_and_path_name_the_same_catalog(built: Any) -> None:
    tables = list_tables(f"file://{built.catalog}", "small")
    assert [table.digest for table in tables] == [
        table.digest for table in list_tables(built.catalog, "small")
    ]
    assert tables[0].read().equals(built.samples.read())


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(CatalogError, match="nosuch://bucket"):
        list_tables("nosuch://bucket", "small")
