"""Samples with more than 2 GiB of images, the most that one Arrow array of bytes can hold.

The files are padded with zeros, which a decoder of JPEG does not read and which take no memory until copied.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_catalog.inspect.contact_sheet import SheetSettings, draw_sheet
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from data_catalog.views.training_view import ViewSettings, make_view
from tests.data_catalog.folders import HEIGHT, WIDTH

FILE_BYTES = 200 * 2**20
FILES_OF_A_CHUNK = 10


def padded(files: Sequence[bytes]) -> pa.ChunkedArray:
    chunks = []
    for start in range(0, len(files), FILES_OF_A_CHUNK):
        here = files[start : start + FILES_OF_A_CHUNK]
        data = np.zeros(len(here) * FILE_BYTES, dtype=np.uint8)
        for number, file in enumerate(here):
            data[number * FILE_BYTES :][: len(file)] = np.frombuffer(file, dtype=np.uint8)
        offsets = np.arange(len(here) + 1, dtype=np.int32) * FILE_BYTES
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        chunks.append(pa.BinaryArray.from_buffers(pa.binary(), len(here), buffers))
    return pa.chunked_array(chunks)


class Large(Table):
    """A samples table with large RGB files."""

    def read_shard(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        rows = super().read_shard(number, columns)
        if "rgb" not in rows.column_names:
            return rows
        position = rows.column_names.index("rgb")
        return rows.set_column(position, "rgb", padded(rows["rgb"].to_pylist()))


def ingested(source: Path, catalog: Path, samples_per_shard: int) -> tuple[Table, Large]:
    table = ingest(source, catalog, "small", IngestSettings(samples_per_shard=samples_per_shard))
    return table, Large(table.catalog, table.manifest)


@pytest.mark.parametrize("samples_per_shard", [3, 512], ids=["together", "one"])
def test_shards_of_a_view_hold_the_same_rows(source: Path, tmp_path: Path, samples_per_shard: int) -> None:
    """Whether the shards of samples that one shard of the view touches hold so much together, or one does."""
    samples, large = ingested(source, tmp_path / "catalog", samples_per_shard)
    settings = ViewSettings(split="train", height=HEIGHT, width=WIDTH)
    made = make_view(large, None, None, settings)
    assert [shard.rows for shard in made.manifest.shards] == [12]
    plain = make_view(ingested(source, tmp_path / "other", samples_per_shard)[0], None, None, settings)
    assert made.digest == plain.digest
    assert len(samples) * FILE_BYTES > 2**31


def test_contact_sheet_shows_the_same(source: Path, tmp_path: Path) -> None:
    pictures = []
    settings = SheetSettings(ids=("train/000003_cam2_0_01", "train/000001_cam1_0_00"))
    for number, samples in enumerate(ingested(source, tmp_path / "catalog", 512)):
        draw_sheet(samples, None, None, tmp_path / f"{number}.png", settings)
        pictures.append(np.asarray(Image.open(tmp_path / f"{number}.png")))
    assert np.array_equal(*pictures)


def test_some_rows_of_a_shard_are_read_in_the_order_asked_for(source: Path, tmp_path: Path) -> None:
    samples, large = ingested(source, tmp_path / "catalog", 512)
    rows = [11, 0, 7]
    for table in (samples, large):
        found = table.read_rows(1, rows, ["sample_id", "rgb"])
        assert found["sample_id"].to_pylist() == samples.read_shard(1).take(rows)["sample_id"].to_pylist()
        assert found["rgb"][2].as_py().startswith(samples.read_shard(1)["rgb"][7].as_py())
    assert samples.read_rows(0, [], ["rgb"]).num_rows == 0
