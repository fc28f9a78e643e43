import shutil
from pathlib import Path

import pytest

from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table, list_tables
from tests.data_catalog.captions.llm.captioning import QUESTIONS, Asked, caption, list_asked
from tests.data_catalog.captions.llm.chat_server import chat_server
from tests.data_catalog.captions.llm.sending import KEY
from tests.data_catalog.folders import write_data_set


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="package")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with the samples alone; to be copied."""
    source, catalog = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("catalog")
    write_data_set(source)
    for path in source.rglob("*_01.jpg"):
        path.unlink()
    ingest(source, catalog, "small", IngestSettings(samples_per_shard=4))
    return catalog


@pytest.fixture
def samples(ingested: Path, tmp_path: Path) -> Table:
    """The samples table in a catalog without answers."""
    catalog = shutil.copytree(ingested, tmp_path / "catalog")
    [table] = list_tables(catalog, "small")
    return table


@pytest.fixture(scope="package")
def plain(ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, list[Asked]]:
    """The captions made with a server that makes no fault, and what it was asked, sample by sample."""
    catalog = shutil.copytree(ingested, tmp_path_factory.mktemp("undisturbed") / "catalog")
    with chat_server() as server:
        [samples] = list_tables(catalog, "small")
        # One request at a time, so that the requests of a sample follow each other.
        table = caption(samples, server, concurrency=1)
        assert len(server.requests) == QUESTIONS
        return table, list_asked(server)


@pytest.fixture
def undisturbed(plain: tuple[Table, list[Asked]]) -> Table:
    """The table which a disturbed job must reach as well."""
    return plain[0]
