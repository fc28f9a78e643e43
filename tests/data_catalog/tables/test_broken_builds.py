"""Builds that are killed, run twice at once, or fill the disk: the table is absent or complete."""

import json
import multiprocessing
import resource
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.inspect.verification import verify
from data_catalog.storage.filesystems import write_atomically
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import ShardMaker, ShardWriter
from data_catalog.tables.table import Table, list_tables
from tests.data_catalog import steps
from tests.data_catalog.tables import slow_build
from tests.data_catalog.tables.slow_build import MASK_BYTES, SHARDS


def list_shards(catalog: Path) -> list[Path]:
    return sorted(catalog.rglob("shard-*.parquet"))


@pytest.mark.slow
def test_killed_build_is_completed_once_by_two_processes(tmp_path: Path, ray_session: None) -> None:
    whole = slow_build.build(tmp_path / "whole", 0)
    catalog = tmp_path / "catalog"
    killed = slow_build.start(catalog, 1.0, actors=True)
    deadline = time.monotonic() + 60
    while len(list_shards(catalog)) < 2:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = {path: path.stat().st_mtime_ns for path in list_shards(catalog)}
    assert 2 <= len(left) < SHARDS
    assert list_tables(catalog, "slow") == []
    [folder] = {path.parent for path in left}
    (folder / f".{left.popitem()[0].name}.0123.partial").write_bytes(b"half")

    left = {path: path.stat().st_mtime_ns for path in list_shards(catalog)}
    processes = [slow_build.start(catalog, 0.5) for _ in range(2)]
    reports = [json.loads(process.communicate(timeout=100)[0]) for process in processes]
    assert sorted(report["reused"] for report in reports) == [False, True]
    assert {report["digest"] for report in reports} == {whole.digest}
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert not list(catalog.rglob("*.partial"))
    assert verify(catalog, "slow").errors == ()


@pytest.mark.parametrize("step", steps.STEPS)
def test_killed_step_leaves_no_table_and_is_finished_by_the_next_run(built: Any, step: str) -> None:
    whole: Table = getattr(built, step)
    folder, shards = Path(whole.path), [shard.file for shard in whole.manifest.shards]
    shutil.rmtree(folder)
    left: dict[str, int] = {}
    # The process dies in the second shard; then in the last of the remaining shards and the manifest.
    for files in (2, len(shards)):
        process = multiprocessing.get_context("forkserver").Process(
            target=steps.die, args=(built.source, built.catalog, files)
        )
        process.start()
        process.join(timeout=100)
        assert process.exitcode == -signal.SIGKILL
        assert whole.digest not in {table.digest for table in list_tables(built.catalog, "small")}
        assert len(list(folder.glob("*.partial"))) == 1
        kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
        assert left.items() <= kept.items()
        left = kept
    assert sorted(left) == shards
    finished = steps.all_steps(built.source, built.catalog)[step]
    assert finished.digest == whole.digest
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == left
    assert not list(folder.glob("*.partial"))
    assert verify(built.catalog, "small").errors == ()


def test_full_disk_leaves_no_table_and_names_the_file(tmp_path: Path, actors: None) -> None:
    full = tmp_path / "full"
    full.touch()
    with pytest.raises(NotWritableError, match=r"shard-0000\d\.parquet could not be written: .*Make room"):
        slow_build.build(tmp_path / "catalog", 0, full)
    assert list_tables(tmp_path / "catalog", "slow") == []
    assert list_shards(tmp_path / "catalog") == []
    assert not list(tmp_path.rglob("*.partial"))
    full.unlink()
    assert len(slow_build.build(tmp_path / "catalog", 0, full)) == SHARDS


@dataclass(frozen=True)
class BrokenMaker(ShardMaker[dict[str, int]]):
    is_broken_early: bool = False

    def prepare(self) -> None:
        if self.is_broken_early:
            raise MemoryError("no room for the model")

    def make(self, spec: dict[str, int]) -> tuple[pa.Table, dict[str, Any]]:
        raise ZeroDivisionError(f"nothing in {spec['number']}")


def test_unexpected_exception_is_one_message_with_a_logged_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batch = {name: np.array([value]) for name, value in (("number", 3), ("file", "shard-00003.parquet"))}
    batch["spec"] = np.array(['{"number": 3}'])
    for maker, message in (
        (BrokenMaker(), "ZeroDivisionError: nothing in 3"),
        (BrokenMaker(is_broken_early=True), "MemoryError: no room for the model"),
    ):
        result = ShardWriter(str(tmp_path), maker)(batch)
        [error] = result["error"]
        # A person whose own module it was finds the place.
        assert error.startswith(
            f"shard {tmp_path}/shard-00003.parquet could not be made ({message}, in {__file__} line "
        )
        assert "its traceback is printed above" in error
        assert "Traceback" in caplog.text
        assert message in caplog.text


def test_unexpected_exception_in_an_actor_is_a_catalog_error(tmp_path: Path, actors: None) -> None:
    with pytest.raises(
        CatalogError, match=r"^shard .*shard-0000[01]\.parquet could not be made \(ZeroDiv.*log of the worker"
    ):
        build_table(
            catalog=tmp_path,
            dataset="broken",
            kind=TableKind.MASKS,
            settings={},
            inputs={},
            # This process would make a single one.
            specs=[{"number": 0}, {"number": 1}],
            maker=BrokenMaker(),
            summarise=lambda shards: {},
        )
    assert list_tables(tmp_path, "broken") == []


def test_file_that_does_not_fit_is_not_left_in_part(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MASK_BYTES // 2, hard))
    try:
        with pytest.raises(CatalogError, match=r"manifest\.json could not be written"):
            write_atomically(fs.LocalFileSystem(), f"{tmp_path}/a/manifest.json", bytes(MASK_BYTES))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "a").iterdir()) == []
