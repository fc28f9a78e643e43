"""One shard of a table: how its rows are made and written, and whether an earlier build completed it."""

import hashlib
import json
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.storage import filesystems
from data_catalog.tables.digests import content_digest
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import ShardRecord, read_shard_file

_LOGGER = logging.getLogger(__name__)
_METADATA = b"data_catalog"

Spec = TypeVar("Spec")
"""A shard spec, of JSON values: what a maker needs to know to make one shard."""

Statistics = dict[str, Any]
"""What was counted and measured in a shard or a table, by name: JSON values, different for each kind."""


class ShardMaker(ABC, Generic[Spec]):
    """Makes the rows of one shard; sent to the actors, so it holds settings and handles, not models."""

    gpus_per_actor: float = 0
    """GPUs that one actor uses if the cluster has any; without them it runs on CPUs."""
    cpus_per_actor: float = 1
    """CPUs that one actor uses if it has no GPU; at most all those of a machine."""
    is_light: bool = False
    """Whether a shard takes a few seconds at most: some can then be made before actors have started."""

    @property
    def source_folder(self) -> Path | None:
        """Folder of the files that it reads: machines that do not see the same files take no part."""
        return None

    def prepare(self) -> None:
        """Load what takes long (a model); called once in every actor, before its first shard."""
        return

    def is_final(self, statistics: Mapping[str, Any]) -> bool:
        """Whether a shard that an interrupted build left would be made the same again.

        Args:
            statistics: What `make` returned for it.
        """
        return True

    @abstractmethod
    def make(self, spec: Spec) -> tuple[pa.Table, Statistics]:
        """Make one shard.

        Args:
            spec: What `build_table` was given for this shard.

        Returns:
            Its rows, and statistics (JSON values) for `summarise` of `build_table`.
        """


class ShardWriter:
    """The Ray Data actor: each call makes one shard and writes it."""

    def __init__(self, root: str, maker: ShardMaker[Any], traceback_place: str = "printed above") -> None:
        self.filesystem, self.folder = filesystems.open_root(root)
        self.maker = maker
        self.traceback_place = traceback_place
        self.is_prepared = False

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Make the shard of a batch of one row.

        Args:
            batch: `number`, `file` and `spec` (as JSON).

        Returns:
            Columns of one row: `number`, and either `record` and `statistics` (as JSON) or `error` and
            `is_unwritable`.
        """
        path = f"{self.folder}/{batch['file'][0]}"
        result = {"number": int(batch["number"][0]), "record": "", "statistics": "", "error": ""}
        result["is_unwritable"] = False
        # An exception would reach the user inside a page of Ray's traceback, so its message is a result.
        try:
            if not self.is_prepared:
                self.maker.prepare()
                self.is_prepared = True
            rows, statistics = self.maker.make(json.loads(str(batch["spec"][0])))
            record = _write_shard(self.filesystem, path, rows, statistics)
            result |= {"record": record.model_dump_json(), "statistics": json.dumps(statistics)}
        except CatalogError as error:
            result |= {"error": str(error), "is_unwritable": isinstance(error, NotWritableError)}
        except Exception as error:
            _LOGGER.exception("shard %s could not be made", path)
            fault = traceback.extract_tb(error.__traceback__)[-1]
            result["error"] = (
                f"shard {path} could not be made ({type(error).__name__}: {error}, in {fault.filename} line "
                f"{fault.lineno}). This is a fault of the program, or of a module of your own: its traceback "
                f"is {self.traceback_place}. Complete shards are kept"
            )
        return {name: [value] for name, value in result.items()}


def _write_shard(
    filesystem: fs.FileSystem, path: str, rows: pa.Table, statistics: Mapping[str, Any]
) -> ShardRecord:
    # What a later build must know of this shard is stored inside it, so that both are complete or neither.
    content = content_digest(rows)
    facts = json.dumps({"content": content, "statistics": statistics}).encode()
    rows = rows.replace_schema_metadata({_METADATA: facts})
    sink = pa.BufferOutputStream()
    if path.endswith(TableKind.VIEW.suffix):
        with pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows.combine_chunks())
    else:
        pq.write_table(rows, sink, compression="zstd", use_dictionary=False)
    data = sink.getvalue()
    filesystems.write_atomically(filesystem, path, data)
    return _record(path, rows, data, content)


def find_complete_shard(filesystem: fs.FileSystem, path: str) -> tuple[ShardRecord, Statistics] | None:
    """Record and statistics of a shard that an earlier build left, or None if it must be made."""
    if not filesystems.exists(filesystem, path):
        return None
    try:
        rows = read_shard_file(filesystem, path)
        facts = json.loads((rows.schema.metadata or {})[_METADATA])
        data = filesystems.read_buffer(filesystem, path)
        content = content_digest(rows)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None
    return (_record(path, rows, data, content), facts["statistics"]) if content == facts["content"] else None


def _record(path: str, rows: pa.Table, data: pa.Buffer, content: str) -> ShardRecord:
    sha256 = hashlib.sha256(data).hexdigest()
    return ShardRecord(file=path.rpartition("/")[2], rows=rows.num_rows, sha256=sha256, content=content)
