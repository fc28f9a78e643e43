"""How fast random rows of a view are read."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind, view_schema
from data_catalog.tables.shards import ShardMaker
from data_catalog.views.training_view import ViewSettings
from data_catalog.views.view_reader import open_view
from experiments.benchmarks.measuring import BenchmarkReport, measure

SIZE = (256, 128)
"""Height and width of the published images."""


def view_read(repeats: int) -> BenchmarkReport:
    """Random rows of a memory-mapped view at the published size, against copying as many bytes."""
    shards, rows, samples = 4, 500, 72
    random = np.random.default_rng(0)
    settings = ViewSettings(split="train", height=SIZE[0], width=SIZE[1], text_dim=512)
    with tempfile.TemporaryDirectory() as folder:
        table = build_table(
            catalog=folder,
            dataset="random",
            kind=TableKind.VIEW,
            settings=settings.model_dump(),
            inputs={},
            specs=[{"rows": rows}] * shards,
            maker=RandomRows(SIZE),
            summarise=lambda shards: {},
        )
        view = open_view(table)
        block = random.integers(0, 256, (samples, 10 * SIZE[0] * SIZE[1]), dtype=np.uint8)
        copy = measure("copy of as many bytes", block.copy, repeats, samples)
        read = measure(
            "view.batch", lambda: view.batch(random.permutation(shards * rows)[:samples]), repeats, samples
        )
    sizes = {"image": SIZE, "rows": shards * rows, "samples": samples, "threads": torch.get_num_threads()}
    return BenchmarkReport(name="view-read", settings=sizes, results=(copy, read.compared_with(copy)))


@dataclass
class RandomRows(ShardMaker):
    """Makes shards of a view with random pixels.

    Attributes:
        size: Height and width of the images.
    """

    size: tuple[int, int]

    def make(self, spec: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        """A shard of `spec["rows"]` rows."""
        rows, random, schema = spec["rows"], np.random.default_rng(0), view_schema(*self.size, 512)
        columns = [pa.array(self._values(field.type, rows, random), field.type) for field in schema]
        return pa.table(columns, schema=schema), {}

    @staticmethod
    def _values(kind: pa.DataType, rows: int, random: np.random.Generator) -> list[Any]:
        if pa.types.is_fixed_size_binary(kind):
            return [random.bytes(kind.byte_width) for _ in range(rows)]
        if pa.types.is_fixed_size_list(kind):
            return random.random((rows, kind.list_size), dtype=np.float32).tolist()
        if pa.types.is_string(kind):
            return [str(row) for row in range(rows)]
        return [True] * rows if pa.types.is_boolean(kind) else [0] * rows
