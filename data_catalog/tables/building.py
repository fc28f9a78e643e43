"""One way to build every table: shards are made in parallel by Ray Data actors, the manifest is written last.

An actor makes a shard from shards of the inputs, mostly from those with the same number, and writes it whole
or not at all. So the result depends neither on the number of actors nor on which one finishes first, and an
interrupted step continues with the missing shards. As long as it is faster than to start actors, this process
makes the shards itself. Of two processes that want the same table, one builds it and the other waits (see
`data_catalog.storage.claims`).
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from data_catalog.actors import map_on_actors
from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.progress import Progress, no_progress
from data_catalog.ray_failures import describe_failure
from data_catalog.ray_session import check_ray, ensure_ray
from data_catalog.storage import filesystems
from data_catalog.storage.claims import claim_unless
from data_catalog.storage.folders import Folder
from data_catalog.storage.node_probe import NeededFolder, check_nodes, nodes_with
from data_catalog.tables.digests import json_digest, table_digest
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import ShardMaker, ShardWriter, Spec, Statistics, find_complete_shard
from data_catalog.tables.table import (
    MANIFEST,
    Manifest,
    ShardRecord,
    Table,
    ask_for,
    check_dataset_name,
    open_table,
    table_path,
)

LOCAL_SECONDS_VARIABLE = "DATA_CATALOG_LOCAL_SECONDS"
"""Environment variable: a table is built in this process while the shards left are estimated to take at most
this long; 10 by default, about what Ray and the first actors take to start. `inf` uses no actors at all."""

MEMORY_REMEDY = (
    "use nodes with more memory, or on this machine fewer processes at once (`taskset --cpu-list 0-1` before "
    "the command)"
)
_WORKER_LOG = "in the log of the worker, usually below /tmp/ray/session_latest/logs"

_LIBRARIES = ("ray", "pyarrow", "numpy", "pillow", "opencv-python-headless", "torch", "sam2")


def build_table(
    *,
    catalog: str | Path,
    dataset: str,
    kind: TableKind,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    specs: Sequence[Spec] | Callable[[], Sequence[Spec]],
    maker: ShardMaker[Spec],
    summarise: Callable[[list[Statistics]], Statistics],
    key_extra: Any = None,
    earlier_key_extra: Callable[[], Any] = lambda: None,
    created: Mapping[str, Any] | None = None,
    before: Callable[[], None] | None = None,
    progress: Progress = no_progress,
) -> Table:
    """The table that these inputs and settings ask for; builds it if it does not exist yet.

    Later steps take it, since it was asked for last.

    Args:
        catalog: Root of the catalog, folder or URI.
        dataset: Name of the data set.
        kind: Which table.
        settings: What determines the rows; part of key and digest.
        inputs: The digests of what the table is made from, by name; part of key and digest.
        specs: For each shard, what `maker.make` needs to know; JSON values. A function is called only if the
            table does not exist.
        maker: Makes a shard.
        summarise: Makes the statistics of the table (JSON values) from those of all shards, in order; may
            raise CatalogError to refuse the table.
        key_extra: What else distinguishes this request, such as the listing of a source folder; part of
            the key only.
        earlier_key_extra: Gives what `key_extra` was in earlier versions, so that their tables are found;
            None where it was the same.
        created: What else to store about the origin; part of neither.
        before: Called once before shards are made; not called if the table exists.
        progress: Called as shards complete.

    Raises:
        CatalogError: An input is wrong, or the Ray that is asked for cannot be there; no table exists then,
            but complete shards are kept.
    """
    check_dataset_name(dataset)
    start = time.monotonic()
    # Actors run in other folders, where a relative path would mean another catalog.
    catalog = str(catalog) if "://" in str(catalog) else str(Path(catalog).resolve())
    request = {"kind": kind, "version": kind.schema_version, "settings": settings, "inputs": inputs}
    key = json_digest(request | {"extra": key_extra})[:16]
    if (table := open_table(catalog, dataset, kind, key)) is not None:
        return ask_for(table)
    if (extra := earlier_key_extra()) is not None:
        earlier_key = json_digest(request | {"extra": extra})[:16]
        if (table := open_table(catalog, dataset, kind, earlier_key)) is not None:
            return ask_for(table)
    # Before anything is made; a table that is found needs no Ray, nor does one that is made in this process.
    if _local_seconds() < math.inf:
        check_ray()
    root = table_path(catalog, dataset, kind, key)
    specs = specs() if callable(specs) else specs
    files = [f"shard-{number:05d}{kind.suffix}" for number in range(len(specs))]

    def is_built() -> bool:
        _report_files(root, files, progress)
        return open_table(catalog, dataset, kind, key) is not None

    with claim_unless(root, is_built):
        # Another process may have built it in the meantime.
        if (table := open_table(catalog, dataset, kind, key)) is not None:
            return ask_for(table)
        filesystem, folder = filesystems.open_root(root)
        filesystems.remove_partial_files(filesystem, folder)
        if before is not None:
            before()
        made = _make_shards(root, files, specs, maker, progress)
        shards = tuple(record for record, _ in made)
        statistics = summarise([statistics for _, statistics in made])
        manifest = Manifest(
            table=kind,
            dataset=dataset,
            key=key,
            schema_version=kind.schema_version,
            rows=sum(shard.rows for shard in shards),
            shards=shards,
            digest=table_digest(kind, [shard.content for shard in shards], inputs, settings),
            inputs=dict(inputs),
            settings=dict(settings),
            statistics=statistics,
            created={
                "time": datetime.now(UTC).isoformat(timespec="microseconds"),
                "versions": {"python": platform.python_version(), **_library_versions()},
                **(created or {}),
            },
            seconds=round(time.monotonic() - start, 3),
        ).sealed()
        data = manifest.to_bytes()
        filesystems.write_atomically(filesystem, f"{folder}/{MANIFEST}", data)
        # Read back, so that this handle equals a later one: JSON turns tuples of the settings into lists.
        return ask_for(Table(catalog, Manifest.model_validate_json(data), reused=False))


def _report_files(root: str, files: Sequence[str], progress: Progress) -> None:
    """Report how many shards another process has written."""
    found = filesystems.list_files(*filesystems.open_root(root))
    progress(sum(name in found for name in files), len(files))


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        # OpenCV is published under several names.
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _make_shards(
    root: str,
    files: Sequence[str],
    specs: Sequence[Spec],
    maker: ShardMaker[Spec],
    progress: Progress,
) -> list[tuple[ShardRecord, Statistics]]:
    """Record and statistics of every shard, in order; makes those that are missing."""
    filesystem, folder = filesystems.open_root(root)
    done: dict[int, tuple[ShardRecord, Statistics]] = {}
    missing: list[dict[str, Any]] = []
    for number, (file, spec) in enumerate(zip(files, specs, strict=True)):
        complete = find_complete_shard(filesystem, f"{folder}/{file}")
        if complete is not None and maker.is_final(complete[1]):
            done[number] = complete
        else:
            missing.append({"number": number, "file": file, "spec": json.dumps(spec)})
    progress(len(done), len(files))
    for result in _results(missing, root, maker):
        if result["error"]:
            raise (NotWritableError if result["is_unwritable"] else CatalogError)(result["error"])
        record = ShardRecord.model_validate_json(result["record"])
        done[int(result["number"])] = record, json.loads(result["statistics"])
        progress(len(done), len(files))
    return [done[number] for number in range(len(files))]


def _results(rows: list[dict[str, Any]], root: str, maker: ShardMaker[Any]) -> Iterator[dict[str, Any]]:
    """The result of each shard, as they complete: made here while that is faster, the rest by actors."""
    local_seconds = _local_seconds()
    is_local = (not maker.gpus_per_actor and (maker.is_light or len(rows) == 1)) or local_seconds == math.inf
    writer, start = ShardWriter(root, maker), time.monotonic()
    for done, row in enumerate(rows):
        elapsed_seconds = time.monotonic() - start
        if not is_local or (done and elapsed_seconds / done * (len(rows) - done) > local_seconds):
            if machines := _find_machines(maker):
                yield from _run_actors(rows[done:], root, maker, machines)
                return
            is_local, local_seconds = True, math.inf
        # On as many CPUs as an actor has.
        with threadpool_limits(limits=max(1, int(maker.cpus_per_actor))):
            result = writer({name: np.array([value]) for name, value in row.items()})
        yield {name: values[0] for name, values in result.items()}


def _local_seconds() -> float:
    text = os.environ.get(LOCAL_SECONDS_VARIABLE) or "10"
    try:
        return float(text)
    except ValueError:
        raise CatalogError(
            f"{LOCAL_SECONDS_VARIABLE}={text}: expected a number of seconds, or inf; correct or unset it"
        ) from None


def _find_machines(maker: ShardMaker[Any]) -> list[dict[str, Any]]:
    """The machines of the cluster that can run a maker, as Ray describes them.

    None where the maker reads files that no machine with a CPU sees: this process does.
    """
    import ray  # noqa: PLC0415

    ensure_ray()
    alive = [node for node in ray.nodes() if node["Alive"]]
    if maker.source_folder is None:
        return alive
    with_files = nodes_with(maker.source_folder)
    return [node for node in alive if node["NodeID"] in with_files]


def _run_actors(
    rows: list[dict[str, Any]], root: str, maker: ShardMaker[Any], machines: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    import ray  # noqa: PLC0415

    if len(machines) > 1:
        # The catalog is above data set, kind and key.
        check_nodes([NeededFolder("catalog", Folder(root).parent.parent.parent.location)])
    actors, share = share_machines([machine["Resources"] for machine in machines], maker)
    if maker.source_folder is not None:
        share["label_selector"] = {"ray.io/node-id": f"in({','.join(node['NodeID'] for node in machines)})"}
    arguments = (root, maker, _WORKER_LOG)
    try:
        for result in map_on_actors(rows, ShardWriter, arguments, min(len(rows), actors), share):
            yield {name: values[0] for name, values in result.items()}
    except ray.exceptions.RayError as error:
        raise CatalogError(
            f"{root} could not be built: {describe_failure(error, MEMORY_REMEDY)}. Complete shards are kept; "
            "run the same command again"
        ) from error


def share_machines(
    machines: Sequence[Mapping[str, float]], maker: ShardMaker[Any]
) -> tuple[int, dict[str, Any]]:
    """How many actors a cluster holds, and the resources that Ray reserves for each.

    Args:
        machines: CPUs and GPUs of every machine, as Ray names them.
        maker: What the actors run.
    """
    gpus = maker.gpus_per_actor
    if gpus and any(machine.get("GPU", 0) >= gpus for machine in machines):
        return sum(int(machine.get("GPU", 0) / gpus) for machine in machines), {"num_gpus": gpus}
    largest = max((machine.get("CPU", 0) for machine in machines), default=0)
    cpus = max(1, min(maker.cpus_per_actor, largest))
    return max(1, sum(int(machine.get("CPU", 0) / cpus) for machine in machines)), {"num_cpus": cpus}
