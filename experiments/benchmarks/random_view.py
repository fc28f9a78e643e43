"""A view of random pixels, for measuring how fast one is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_catalog.tables.building import ShardMaker
from data_catalog.tables.schemas import view_schema


@dataclass
class RandomRows(ShardMaker):
    """Fills a view with random pixels.

    Attributes:
        size: Height and width of the images.
    """

    size: tuple[int, int]

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        """A shard of `work["rows"]` rows."""
        rows, random, schema = work["rows"], np.random.default_rng(0), view_schema(*self.size, 512)
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
