"""Verification of a data set's tables: are all bytes as they were written?

The shards and the manifest of every table are verified. A catalog also holds files without digests, which are
not tables: the answers of a language model (tables of captions made from them are verified), and the reports
of the checks, which can be made again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.storage import filesystems
from data_catalog.tables.digests import content_digest, table_digest
from data_catalog.tables.requests import read_requests
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import MANIFEST, Table, list_keys, open_table, read_shard_file

_THREADS = 4


class Fault(Record):
    """Something that differs from what was written when the table was made."""

    table: str
    """Kind and key of the table: `samples/0123456789abcdef`; the kind alone for its history of requests."""
    shard: str
    """File of the shard; empty where the fault is in the manifest."""
    message: str
    """What is wrong and what to do."""


class Verification(Record):
    """What was verified and what was found."""

    dataset: str
    tables: dict[str, int]
    """Number of shards of every table that was verified, by its kind and key."""
    unfinished: tuple[str, ...]
    """Kind and key of every folder without a manifest, which is no table (yet)."""
    errors: tuple[Fault, ...]
    """Every fault, in the order of the tables and their shards."""


def verify(catalog: str | Path, dataset: str, progress: Progress = no_progress) -> Verification:
    """Read every shard of every table of a data set and compare with the manifests.

    Three digests must agree: of a shard's bytes, of the rows in it, and of the table, which is computed from
    the digests of rows and inputs and the settings. A seal covers the rest of the manifest, and the bytes of
    its file must be exactly those that are written for these values.

    Args:
        catalog: Root of the catalog, folder or URI.
        dataset: Name of the data set.
        progress: Called as shards are read.

    Raises:
        CatalogError: If the catalog cannot be reached.
    """
    tables: dict[str, Table] = {}
    unfinished: list[str] = []
    faults: list[Fault] = []

    def report_fault(table: str, shard: str, message: str) -> None:
        faults.append(Fault(table=table, shard=shard, message=message))

    for kind in TableKind:
        try:
            read_requests(catalog, dataset, kind)
        except CatalogError as error:
            report_fault(kind.value, "", str(error))
        for key in list_keys(catalog, dataset, kind):
            name = f"{kind.value}/{key}"
            try:
                table = open_table(catalog, dataset, kind, key)
            except CatalogError as error:
                report_fault(name, "", str(error))
                continue
            if table is None:
                unfinished.append(name)
            else:
                tables[name] = table
    shards = {name: len(table.manifest.shards) for name, table in tables.items()}
    done, total = 0, sum(shards.values())
    progress(done, total)
    # Reading and hashing release the GIL, so a few threads keep disk and CPUs busy.
    with ThreadPoolExecutor(_THREADS) as threads:
        for name, table in tables.items():
            if fault := _manifest_fault(table):
                report_fault(name, "", fault)
            for found in threads.map(_shard_checker(table), range(shards[name])):
                if found is not None:
                    report_fault(name, *found)
                done += 1
                progress(done, total)
    return Verification(dataset=dataset, tables=shards, unfinished=tuple(unfinished), errors=tuple(faults))


def _shard_checker(table: Table) -> Callable[[int], tuple[str, str] | None]:
    filesystem, folder = filesystems.open_root(table.path)

    def check(number: int) -> tuple[str, str] | None:
        record = table.manifest.shards[number]
        path = f"{folder}/{record.file}"
        again = f"delete the folder {table.path} and run its step again"
        try:
            sha256 = filesystems.file_digest(filesystem, path)
            if sha256 != record.sha256:
                return record.file, (
                    f"its bytes changed: SHA-256 is {sha256[:12]}, expected {record.sha256[:12]}; {again}"
                )
            rows = read_shard_file(filesystem, path)
        except (OSError, pa.ArrowInvalid) as error:
            return record.file, f"it cannot be read ({error}); {again}"
        if rows.num_rows != record.rows or content_digest(rows) != record.content:
            return record.file, f"its rows are not those in the manifest; {again}"
        return None

    return check


def _manifest_fault(table: Table) -> str:
    """What is wrong with the manifest; empty where nothing is."""
    manifest = table.manifest
    again = f"delete the folder {table.path} and run its step again"
    contents = [shard.content for shard in manifest.shards]
    digest = table_digest(
        manifest.table, contents, manifest.inputs, manifest.settings, manifest.schema_version
    )
    if digest != manifest.digest:
        return f"its digest is {digest[:12]}, the manifest says {manifest.digest[:12]}; {again}"
    if not manifest.seal:
        return f"its manifest has no seal: it was removed, or an old version made the table; {again}"
    if manifest.seal != manifest.sealed().seal:
        return f"its manifest changed since it was made; {again}"
    filesystem, folder = filesystems.open_root(table.path)
    if filesystems.read_buffer(filesystem, f"{folder}/{MANIFEST}").to_pybytes() != manifest.to_bytes():
        return f"the bytes of its manifest changed since it was made, though no value did; {again}"
    return ""
