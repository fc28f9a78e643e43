from pathlib import Path

import pytest

from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from tests.data_catalog.folders import write_data_set
from tests.examples.command_line import EXAMPLES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small data set of 28 samples."""
    write_data_set(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def samples(source: Path, tmp_path: Path) -> Table:
    """Its samples in shards of three, in the catalog of the test's folder."""
    return ingest(source, tmp_path / "catalog", "small", IngestSettings(samples_per_shard=3))


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the examples, which modules are imported from."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return EXAMPLES
