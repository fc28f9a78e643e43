"""What was asked for last is what later steps take, whatever the clocks say."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from data_catalog.__main__ import main
from data_catalog.checks.newest_tables import find_newest_tables
from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.inspect.verification import verify
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.storage.folders import Folder
from data_catalog.tables import building, table
from data_catalog.tables.requests import REQUESTS, add_request, read_requests
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table, list_tables
from tests.data_catalog.folders import image_path
from tests.data_catalog.steps import all_steps
from tests.data_catalog.tables.test_table import build

MASKS = TableKind.MASKS


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    table._say.cache_clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Sets the clock of the machine that makes tables."""

    def shift(by: timedelta) -> None:
        class Shifted(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + by

        monkeypatch.setattr(building, "datetime", Shifted)

    return shift


def masks(catalog: Path | str, number: int) -> Table:
    """The masks table of these settings."""
    return build(catalog, Path("no"), specs=[{"number": 0}], settings={"stub": number})


def digests(tables: Mapping[str, Table]) -> dict[str, str]:
    return {name: table.digest for name, table in tables.items()}


@pytest.mark.parametrize("shift", [timedelta(0), timedelta(days=1), timedelta(days=-1)])
def test_later_steps_take_the_samples_that_were_ingested_last(
    shift: timedelta,
    own_source: Path,
    tmp_path: Path,
    clock: Callable[[timedelta], None],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    catalog = str(tmp_path / "catalog")
    first = ingest(own_source, catalog, "small")
    added = [image_path(own_source, "train/000001_cam1_0_07", modality) for modality in range(3)]
    for modality, path in enumerate(added):
        path.write_bytes(image_path(own_source, "train/000001_cam1_0_00", modality).read_bytes())
    clock(shift)
    second = ingest(own_source, catalog, "small")
    assert len(second) == len(first) + 1
    assert find_newest_tables(catalog, "small").samples.manifest == second.manifest
    for path in added:
        path.unlink()
    assert ingest(own_source, catalog, "small").manifest == first.manifest
    assert find_newest_tables(catalog, "small").samples.manifest == first.manifest
    view = ["view", "--catalog", catalog, "--size", "32x16", "--split", "train", "--no-masks", "--no-text"]
    assert main([*view, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["views"]["train"]
    assert find_table(catalog, "small", TableKind.VIEW, key=made["key"]).manifest.inputs == {
        "samples": first.digest
    }
    assert (
        f"2 samples tables of data set 'small' fit; taken is {first.manifest.key}, the one asked for last"
    ) in caplog.text
    assert main(["show", "small", "--catalog", catalog, "--history", "--json"]) == 0
    history = json.loads(capsys.readouterr().out)["history"]
    assert [request["key"] for request in history if request["table"] == "samples"] == [
        first.manifest.key,
        second.manifest.key,
        first.manifest.key,
    ]


def test_masks_captions_features_and_views_follow_the_last_request(source: Path, tmp_path: Path) -> None:
    tables = all_steps(source, tmp_path)
    other = ingest(source, tmp_path, "small", IngestSettings(samples_per_shard=5))
    assert other.digest != tables["samples"].digest
    assert digests(find_newest_tables(tmp_path, "small").named) == {"samples": other.digest}
    tables["view train"] = tables.pop("view")
    all_steps(source, tmp_path)
    assert digests(find_newest_tables(tmp_path, "small").named) == digests(tables)


@pytest.mark.parametrize("is_remote", [False, True])
def test_the_last_request_counts_wherever_the_catalog_is(
    is_remote: bool, tmp_path: Path, object_storage: Callable[[str], str]
) -> None:
    catalog = object_storage("requests") if is_remote else str(tmp_path)
    first, second = masks(catalog, 1), masks(catalog, 2)
    assert find_table(catalog, "stub", MASKS).manifest == second.manifest
    assert masks(catalog, 1).reused
    assert find_table(catalog, "stub", MASKS).manifest == first.manifest
    assert find_table(catalog, "stub", MASKS, settings={"stub": 2}).manifest == second.manifest
    assert [request.key for request in read_requests(catalog, "stub", MASKS)] == [
        first.manifest.key,
        second.manifest.key,
        first.manifest.key,
    ]
    assert [table.digest for table in list_tables(catalog, "stub")] == [second.digest, first.digest]


@pytest.mark.parametrize(("is_remote", "count"), [(False, 24), (True, 3)])
def test_no_request_of_several_at_once_is_lost(
    is_remote: bool, count: int, tmp_path: Path, object_storage: Callable[[str], str]
) -> None:
    catalog = object_storage("requests at once") if is_remote else str(tmp_path)
    keys = [f"{number:016x}" for number in range(count)]
    with ThreadPoolExecutor(min(count, 8)) as threads:
        list(threads.map(lambda key: add_request(catalog, "stub", MASKS, key, list), keys))
    assert sorted(request.key for request in read_requests(catalog, "stub", MASKS)) == keys


def test_same_request_twice_in_a_row_writes_nothing(tmp_path: Path) -> None:
    masks(tmp_path, 1)
    path = tmp_path / "stub" / "masks" / REQUESTS
    before = path.stat().st_mtime_ns
    assert masks(tmp_path, 1).reused
    assert path.stat().st_mtime_ns == before


def test_catalog_without_a_history_falls_back_to_the_latest_time_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = masks(tmp_path, 1), masks(tmp_path, 2)
    (tmp_path / "stub" / "masks" / REQUESTS).unlink()
    assert find_table(tmp_path, "stub", MASKS).manifest == second.manifest
    assert f"taken is {second.manifest.key}, the one with the latest time, since an" in caplog.text
    # The first request begins the history with what was there, so that the fallback ends.
    assert masks(tmp_path, 1).reused
    assert [request.key for request in read_requests(tmp_path, "stub", MASKS)] == [
        second.manifest.key,
        first.manifest.key,
    ]
    assert find_table(tmp_path, "stub", MASKS).manifest == first.manifest


def test_table_that_no_request_names_is_older_than_those_that_one_names(tmp_path: Path) -> None:
    named = masks(tmp_path / "here", 1)
    foreign = masks(tmp_path / "there", 2)
    copytree(foreign.path, Path(named.path).with_name(foreign.manifest.key))
    assert find_table(tmp_path / "here", "stub", MASKS).manifest == named.manifest
    assert list_tables(tmp_path / "here", "stub")[0].manifest == foreign.manifest


def test_request_that_cannot_be_stored_is_no_reason_to_refuse_a_table_but_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = masks(tmp_path, 1), masks(tmp_path, 2)

    def refuse(*arguments: Any) -> None:
        raise NotWritableError("read-only")

    monkeypatch.setattr(Folder, "write", refuse)
    assert masks(tmp_path, 1).manifest == first.manifest
    assert f"later steps may take another masks table than {first.path}: read-only" in caplog.text
    assert find_table(tmp_path, "stub", MASKS).manifest == second.manifest


@pytest.mark.parametrize("text", ["", "{}", '{"requests": [{"key": 1}]}', "\xff"])
def test_damaged_history_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    masks(tmp_path, 1)
    path = tmp_path / "stub" / "masks" / REQUESTS
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CatalogError, match=r"requests\.json is not the history of .*; delete it") as caught:
        find_table(tmp_path, "stub", MASKS)
    assert "\n" not in str(caught.value)
    [fault] = verify(tmp_path, "stub").errors
    assert (fault.table, fault.message) == ("masks", str(caught.value))
    path.unlink()
    assert masks(tmp_path, 1).reused
