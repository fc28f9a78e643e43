"""Tables of a catalog: manifests, and handles to read the rows.

A table is a folder `<catalog>/<dataset>/<table>/<key>/` of shards and one `manifest.json`, which is
written last: a table without a manifest does not exist, and one with a manifest never changes. The `key`
names the request (inputs and settings, known before the table is built); the `digest` names the content (the
rows). The digest does not depend on time or machine: the same content made with the same settings has the
same digest everywhere.

Rows are sorted by `sample_index`, and shard i of a table holds the samples of shard i of the tables it
was made from; but a view is sorted and cut by identity (see `data_catalog.views.training_view`).
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import ValidationError

from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.records import FOLDER_NAME, NO_FOLDER_NAME, Record, describe_invalid
from data_catalog.storage import filesystems
from data_catalog.storage.local_copies import local_copy
from data_catalog.tables.digests import json_digest
from data_catalog.tables.requests import Request, add_request, read_requests
from data_catalog.tables.schemas import TableKind

MANIFEST = "manifest.json"

_LOGGER = logging.getLogger(__name__)


class ShardRecord(Record):
    """One shard: its file, the SHA-256 of the file's bytes, and the digest of the rows in it."""

    file: str
    rows: int
    sha256: str
    content: str


class Manifest(Record):
    """Everything about a table except its rows."""

    table: TableKind
    dataset: str
    key: str
    schema_version: int
    rows: int
    shards: tuple[ShardRecord, ...]
    digest: str
    inputs: dict[str, str]
    """The digests of what the table was made from, by name."""
    settings: dict[str, Any]
    statistics: dict[str, Any]
    created: dict[str, Any]
    """When, from where and with which library versions; not part of the digest."""
    seconds: float
    seal: str = ""
    """SHA-256 over all of the above, which reveals a changed manifest."""

    def sealed(self) -> "Manifest":
        """The same manifest with the seal of its content."""
        return self.model_copy(update={"seal": json_digest(self.model_dump(mode="json", exclude={"seal"}))})

    def to_bytes(self) -> bytes:
        """The exact bytes of the file."""
        return (self.model_dump_json(indent=1) + "\n").encode()


@dataclass(frozen=True)
class Table:
    """A handle to a complete table; small, and can be sent to other processes.

    Attributes:
        catalog: Root of the catalog, folder or URI.
        manifest: The content of its manifest.
        reused: Whether the call that returned the handle found the table instead of building it.
        request_number: Number of the last request for it in the history of its kind; -1 where there was none.
    """

    catalog: str
    manifest: Manifest
    reused: bool = True
    request_number: int = field(default=-1, compare=False)

    @property
    def kind(self) -> TableKind:
        """Kind of the table."""
        return self.manifest.table

    @property
    def path(self) -> str:
        """Folder of the table, a path or URI like that of the catalog."""
        return table_path(self.catalog, self.manifest.dataset, self.kind, self.manifest.key)

    @property
    def digest(self) -> str:
        """SHA-256 that names the table's content, inputs and settings."""
        return self.manifest.digest

    @property
    def statistics(self) -> dict[str, Any]:
        """What the step that made the table counted and measured."""
        return self.manifest.statistics

    def __len__(self) -> int:
        return self.manifest.rows

    @cached_property
    def _location(self) -> tuple[fs.FileSystem, str]:
        return filesystems.open_root(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("catalog", "manifest", "reused", "request_number")}

    def read_shard(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one shard, in the order of the table, without a copy where the format allows it.

        A shard of a view is memory-mapped, from a local copy where the catalog is not on a local disk.

        Raises:
            CatalogError: If the shard is missing or damaged.
        """
        filesystem, folder = self._location
        shard = self.manifest.shards[number]
        path = f"{folder}/{shard.file}"
        if self.kind is TableKind.VIEW and not isinstance(filesystem, fs.LocalFileSystem):
            path = str(local_copy(filesystem, path, shard.sha256))
            filesystem = fs.LocalFileSystem()
        try:
            return read_shard_file(filesystem, path, columns).replace_schema_metadata(None)
        except (OSError, pa.ArrowInvalid) as error:
            raise CatalogError(
                f"shard {path} cannot be read ({error}); delete the folder {self.path} and run the step again"
            ) from error

    def read_rows(self, number: int, rows: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Some rows of one shard, in the given order, without a copy.

        `pa.Table.take` would join the chunks of a column, which fails where they hold more than 2 GiB.

        Raises:
            CatalogError: If the shard is missing or damaged.
        """
        shard = self.read_shard(number, columns)
        return pa.concat_tables([shard.slice(0, 0), *(shard.slice(row, 1) for row in rows)])

    def check_shards(self) -> None:
        """Refuse a table on a disk that lacks a shard, or has one that was cut off; reads no rows of a view.

        Raises:
            CatalogError: Names the shard, and says what to do.
        """
        if isinstance(self._location[0], fs.LocalFileSystem):
            for number in range(len(self.manifest.shards)):
                self.read_shard(number, [])

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of the whole table, in its order.

        Args:
            columns: Names of the columns to read, in this order; all when None.
        """
        if not self.manifest.shards:
            raise CatalogError(f"table {self.path} has no shards; delete the folder and run the step again")
        return pa.concat_tables(self.read_shard(i, columns) for i in range(len(self.manifest.shards)))


def read_shard_file(filesystem: fs.FileSystem, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a shard file with the metadata that is stored in it."""
    if path.endswith(TableKind.VIEW.suffix):
        rows = pa.ipc.open_file(filesystems.read_buffer(filesystem, path)).read_all()
        return rows if columns is None else rows.select(list(columns))
    return pq.read_table(path, filesystem=filesystem, columns=None if columns is None else list(columns))


def table_path(catalog: str, dataset: str, kind: TableKind, key: str) -> str:
    """Folder of a table below its catalog."""
    return filesystems.join(catalog, dataset, kind.value, key)


def open_table(catalog: str | Path, dataset: str, kind: TableKind, key: str) -> Table | None:
    """The table with this key, or None if there is none (yet).

    Raises:
        CatalogError: If its manifest is damaged.
    """
    filesystem, folder = filesystems.open_root(table_path(str(catalog), dataset, kind, key))
    path = f"{folder}/{MANIFEST}"
    if not filesystems.exists(filesystem, path):
        return None
    return Table(str(catalog), _read_manifest(filesystem, path))


def _read_manifest(filesystem: fs.FileSystem, path: str) -> Manifest:
    with filesystem.open_input_stream(path, compression=None) as stream:
        text = stream.read()
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise CatalogError(
            f"{path} is not a manifest of this version ({describe_invalid(error, 'the file')}); delete its "
            "folder and run the step again"
        ) from error


def list_tables(catalog: str | Path, dataset: str, kind: TableKind | None = None) -> list[Table]:
    """The complete tables of a data set, kinds in the order of `TableKind`, the newest of a kind last.

    The newest is the one that was asked for last (see `data_catalog.tables.requests`). Tables that an earlier
    version made are in the order of the times in their manifests, before those that were asked for since.

    Raises:
        CatalogError: The catalog cannot be read, or a manifest or a history in it is damaged.
    """
    found: list[Table] = []
    for wanted in TableKind if kind is None else (kind,):
        requests = read_requests(catalog, dataset, wanted)
        numbers = {request.key: number for number, request in enumerate(requests)}
        tables = [open_table(catalog, dataset, wanted, key) for key in list_keys(catalog, dataset, wanted)]
        found += sorted(
            (replace(table, request_number=numbers.get(table.manifest.key, -1)) for table in tables if table),
            key=lambda table: (table.request_number, table.manifest.created["time"]),
        )
    return found


def ask_for(table: Table) -> Table:
    """Make a table the newest of its kind, and give it back.

    Raises:
        CatalogError: The history of requests is damaged.
        NotWritableError: The catalog cannot be written to, and the table was built just now.
    """
    dataset, kind, key = table.manifest.dataset, table.kind, table.manifest.key
    if kind is TableKind.IMAGE_HASHES:
        # The checks make it, for any samples; nobody asks for it.
        return table

    def earlier() -> list[Request]:
        return [
            Request(key=other.manifest.key, time=other.manifest.created["time"])
            for other in list_tables(table.catalog, dataset, kind)
            if other.manifest.key != key
        ]

    try:
        add_request(table.catalog, dataset, kind, key, earlier)
    except NotWritableError as error:
        if not table.reused:
            raise
        _LOGGER.warning("later steps may take another %s table than %s: %s", kind.value, table.path, error)
    return table


def take_newest(tables: Sequence[Table]) -> Table:
    """The last of tables of one kind as `list_tables` orders them; says which, if they differ."""
    newest = tables[-1]
    if len({table.digest for table in tables}) > 1:
        reason = "the one asked for last"
        if newest.request_number < 0:
            reason = (
                "the one with the latest time, since an earlier version made them and kept no history; run "
                "the step of the one you want again"
            )
        manifest, split = newest.manifest, newest.manifest.settings.get("split")
        _say(
            f"{len(tables)} {newest.kind.value} tables of data set {manifest.dataset!r}"
            f"{f' and split {split!r}' if split else ''} fit; taken is {manifest.key}, {reason}"
        )
    return newest


@cache
def _say(message: str) -> None:
    """Say something once in this process."""
    _LOGGER.warning("%s", message)


def check_dataset_name(name: str) -> None:
    """Refuse a name of a data set that would lead out of the catalog.

    Raises:
        CatalogError: It is none.
    """
    if not re.fullmatch(FOLDER_NAME, name):
        raise CatalogError(f"data set {name!r} {NO_FOLDER_NAME}")


def list_keys(catalog: str | Path, dataset: str, kind: TableKind) -> list[str]:
    """Keys of the tables of a kind, sorted, including those of incomplete tables."""
    check_dataset_name(dataset)
    return filesystems.list_folders(*filesystems.open_root(filesystems.join(catalog, dataset, kind.value)))


def list_datasets(catalog: str | Path) -> list[str]:
    """Names of the data sets of a catalog, sorted."""
    filesystem, folder = filesystems.open_root(catalog)
    return [name for name in filesystems.list_folders(filesystem, folder) if not name.startswith(".")]


def find_table(
    catalog: str | Path,
    dataset: str,
    kind: TableKind,
    *,
    key: str | None = None,
    digest: str | None = None,
    inputs: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Table:
    """Find the newest table of a kind, the one asked for last, or the one with the given key.

    Args:
        catalog: Root of the catalog.
        dataset: Name of the data set.
        kind: Which table.
        key: Its key; None for the newest.
        digest: Its digest; None for any.
        inputs: Only tables made from inputs with these digests, for example `{"samples": digest}`. Tables
            of an older version of the schema do not count.
        settings: Only tables made with these settings, for example `{"split": "train"}`.

    Raises:
        CatalogError: If there is none.
    """
    tables = list_tables(catalog, dataset, kind)
    fitting = [
        table
        for table in tables
        if table.manifest.schema_version == kind.schema_version
        and key in (None, table.manifest.key)
        and digest in (None, table.digest)
        and (inputs or {}).items() <= table.manifest.inputs.items()
        and all(table.manifest.settings.get(name) == value for name, value in (settings or {}).items())
    ]
    if fitting:
        return take_newest(fitting)
    wanted = [f"key {key}"] if key else []
    wanted += [f"digest {digest[:12]}"] if digest else []
    wanted += [f"made from {name} {digest[:12]}" for name, digest in (inputs or {}).items()]
    wanted += [f"{name} {value}" for name, value in (settings or {}).items()]
    such = f" ({', '.join(wanted)})" if wanted else ""
    step = "ingest" if kind is TableKind.SAMPLES else kind.value.replace("_", "-")
    raise CatalogError(
        f"data set {dataset!r} of catalog {catalog} has no {kind.value} table{such}; run "
        f"`python -m data_catalog {step}` first (keys found: "
        f"{', '.join(table.manifest.key for table in tables) or 'none'}; data sets found: "
        f"{', '.join(list_datasets(catalog)) or 'none'})"
    )
