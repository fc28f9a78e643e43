"""A table whose shards take their time, built in a process of its own that a test may kill.

python -m tests.data_catalog.tables.slow_build CATALOG SECONDS_PER_SHARD
"""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE, build_table
from data_catalog.tables.schemas import MASKS_SCHEMA, TableKind
from data_catalog.tables.shards import ShardMaker
from data_catalog.tables.table import Table

SHARDS = 8
MASK_BYTES = 2**20


@dataclass(frozen=True)
class SlowMaker(ShardMaker[dict[str, int]]):
    """Makes shards of one row.

    Attributes:
        seconds: How long a shard takes.
        full: While this file exists, no file can grow beyond some bytes: what a full disk does.
    """

    seconds: float
    full: Path | None = None

    def prepare(self) -> None:
        if self.full is not None and self.full.exists():
            limit = MASK_BYTES // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def make(self, spec: dict[str, int]) -> tuple[pa.Table, dict[str, Any]]:
        time.sleep(self.seconds)
        number = spec["number"]
        # Bytes that do not compress.
        mask = b"".join(
            (number * 10**9 + i * 2654435761 % 10**9).to_bytes(8, "big") for i in range(MASK_BYTES // 8)
        )
        columns = [[number], [f"train/{number}"], [mask], [0.5], [1.0], [""]]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, MASKS_SCHEMA, strict=True)]
        return pa.table(arrays, schema=MASKS_SCHEMA), {}


def build(catalog: Path | str, seconds: float, full: Path | None = None) -> Table:
    return build_table(
        catalog=catalog,
        dataset="slow",
        kind=TableKind.MASKS,
        settings={},
        inputs={"samples": "0" * 64},
        specs=[{"number": number} for number in range(SHARDS)],
        maker=SlowMaker(seconds, full),
        summarise=lambda shards: {},
    )


def start(catalog: Path | str, seconds: float, actors: bool = False) -> subprocess.Popen[str]:
    """The build in another process, which prints `digest` and `reused` as JSON.

    Args:
        catalog: Its catalog.
        seconds: How long a shard takes.
        actors: Make the shards in actors of a Ray of its own, and not in the process.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment[LOCAL_SECONDS_VARIABLE] = "0" if actors else "inf"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.data_catalog.tables.slow_build", str(catalog), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[3],
        env=environment,
    )


if __name__ == "__main__":
    table = build(sys.argv[1], float(sys.argv[2]))
    sys.stdout.write(json.dumps({"digest": table.digest, "reused": table.reused}))
