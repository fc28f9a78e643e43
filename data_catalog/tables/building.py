"""One way to build every table: shards spread over Ray Data actors, the manifest last.

A shard is made by one actor from shards of its inputs, mostly the same-numbered one, and written whole under
its final name; what is made sooner than actors start is made by the process that wants it. So the result
depends neither on the number of actors nor on who finishes first, and a step that was interrupted continues
with the shards that are missing. Of two processes that want the same table one builds it and the other waits
(see `data_catalog.storage.claims`).
"""

import hashlib
import json
import logging
import platform
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from threadpoolctl import threadpool_limits

from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.progress import Progress, no_progress
from data_catalog.ray_session import ensure_ray
from data_catalog.storage import filesystems
from data_catalog.storage.claims import claim_unless
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import (
    MANIFEST,
    Manifest,
    ShardRecord,
    Table,
    content_digest,
    json_digest,
    open_table,
    read_shard_file,
    table_digest,
    table_path,
)

_LOGGER = logging.getLogger(__name__)
_METADATA = b"data_catalog"
_ACTORS_START_SECONDS = 10.0
"""What Ray and the first actors take to start, about, with all that they import."""
_LIBRARIES = ("ray", "pyarrow", "numpy", "pillow", "opencv-python-headless", "torch", "sam2")


class ShardMaker(ABC):
    """Makes the rows of one shard; sent to the actors, so it holds settings and handles, not models."""

    @property
    def gpus_per_actor(self) -> float:
        """GPUs that one actor uses where the cluster has any; without them it runs on CPUs."""
        return 0

    @property
    def cpus_per_actor(self) -> float:
        """CPUs that one actor uses where it has no GPU, and all of a machine's where that has fewer."""
        return 1

    @property
    def is_light(self) -> bool:
        """Whether a shard takes a few seconds at the most: then a few are made before actors have started."""
        return False

    def prepare(self) -> None:
        """Load what is dear (a model); called once in every actor, before its first shard."""
        return

    def is_final(self, statistics: Mapping[str, Any]) -> bool:
        """Whether a shard that an interrupted build left would be made the same again.

        Args:
            statistics: What `make` told of it.
        """
        return True

    @abstractmethod
    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        """Rows of the shard and what to tell of it in the manifest (JSON values only).

        Args:
            work: What `build_table` was given for this shard.
        """


def build_table(
    *,
    catalog: str | Path,
    dataset: str,
    kind: TableKind,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    work: Sequence[Mapping[str, Any]],
    maker: ShardMaker,
    summarise: Callable[[list[dict[str, Any]]], dict[str, Any]],
    key_extra: Any = None,
    created: Mapping[str, Any] | None = None,
    before: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Table:
    """The table that these inputs and settings ask for, built where it does not exist yet.

    Args:
        catalog: Root of the catalog, folder or URI.
        dataset: Name of the data set.
        kind: Which table.
        settings: What shapes the rows; part of key and digest.
        inputs: Name to digest of what the table is made from; part of key and digest.
        work: One JSON object per shard: what `maker.make` needs to know.
        maker: Makes a shard.
        summarise: From the statistics of all shards, in order, to the statistics of the table; may raise
            CatalogError to refuse the table.
        key_extra: What else distinguishes this request, such as the listing of a source folder; part of
            the key only.
        created: What else to note about the origin; part of neither.
        before: Called once before shards are made, and not at all where the table exists.
        progress: Called as shards complete.

    Raises:
        CatalogError: If something the user gave is wrong; no table then exists, but complete shards stay.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", dataset):
        raise CatalogError(f"dataset {dataset!r} cannot name a folder; use letters, digits, '.', '_' and '-'")
    start = time.monotonic()
    # Actors run in other folders, so a relative catalog would be another one there.
    catalog = str(catalog) if "://" in str(catalog) else str(Path(catalog).resolve())
    key = json_digest(
        {
            "kind": kind,
            "version": kind.schema_version,
            "settings": settings,
            "inputs": inputs,
            "extra": key_extra,
        }
    )[:16]
    if (table := open_table(catalog, dataset, kind, key)) is not None:
        return table
    root = table_path(catalog, dataset, kind, key)
    files = [f"shard-{number:05d}{kind.suffix}" for number in range(len(work))]

    def is_built() -> bool:
        _report_files(root, files, progress)
        return open_table(catalog, dataset, kind, key) is not None

    with claim_unless(root, is_built):
        # Another process may have built it in the meantime.
        if (table := open_table(catalog, dataset, kind, key)) is not None:
            return table
        filesystem, folder = filesystems.open_root(root)
        filesystems.remove_partial_files(filesystem, folder)
        if before is not None:
            before()
        records = _make_shards(root, files, work, maker, progress)
        shards = tuple(record for record, _ in records)
        statistics = summarise([facts for _, facts in records])
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
        # As a later call will read it: a tuple among the settings is a list from here on.
        return Table(catalog, Manifest.model_validate_json(data), reused=False)


def _report_files(root: str, files: Sequence[str], progress: Progress | None) -> None:
    """Report how many shards another builder has written."""
    if progress is not None:
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
    work: Sequence[Mapping[str, Any]],
    maker: ShardMaker,
    progress: Progress | None,
) -> list[tuple[ShardRecord, dict[str, Any]]]:
    """Record and statistics of every shard, in order; only those that are missing are made."""
    filesystem, folder = filesystems.open_root(root)
    done = {
        number: complete
        for number, name in enumerate(files)
        if (complete := _complete_shard(filesystem, f"{folder}/{name}")) is not None
        and maker.is_final(complete[1])
    }
    report = progress or no_progress
    report(len(done), len(files))
    missing = [number for number in range(len(files)) if number not in done]
    if missing:
        rows = [
            {"number": number, "file": files[number], "work": json.dumps(work[number])} for number in missing
        ]
        for result in _results(rows, root, maker):
            if result["error"]:
                raise (NotWritableError if result["is_unwritable"] else CatalogError)(result["error"])
            made = ShardRecord.model_validate_json(result["record"])
            done[int(result["number"])] = made, json.loads(result["statistics"])
            report(len(done), len(files))
    return [done[number] for number in range(len(files))]


def _results(rows: list[dict[str, Any]], root: str, maker: ShardMaker) -> Iterator[dict[str, Any]]:
    """What becomes of each shard, as they come: made here while that is sooner, the rest by actors."""
    if not maker.gpus_per_actor and (maker.is_light or len(rows) == 1):
        writer, start = _ShardWriter(root, maker), time.monotonic()
        for done in range(len(rows)):
            left = len(rows) - done
            if done and (time.monotonic() - start) / done * left > _ACTORS_START_SECONDS:
                rows = rows[done:]
                break
            # On as many processors as an actor has.
            with threadpool_limits(limits=max(1, int(maker.cpus_per_actor))):
                made = writer({name: np.array([value]) for name, value in rows[done].items()})
            yield {name: values[0] for name, values in made.items()}
        else:
            return
    yield from _run_actors(rows, root, maker)


def _run_actors(rows: list[dict[str, Any]], root: str, maker: ShardMaker) -> Any:
    import ray  # noqa: PLC0415

    ensure_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    actors, share = share_machines(machines, maker)
    actors = min(len(rows), actors)
    shards = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ShardWriter,
        fn_constructor_args=(root, maker),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        **share,
    )
    # Ray sets up its loggers with the first data set, so they are quietened after it.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return shards.iter_rows()


def share_machines(machines: Sequence[Mapping[str, float]], maker: ShardMaker) -> tuple[int, dict[str, Any]]:
    """How many actors a cluster holds, and what Ray is to keep for each.

    Args:
        machines: CPUs and GPUs of every machine, as Ray names them.
        maker: What the actors do.
    """
    gpus = maker.gpus_per_actor
    if gpus and any(machine.get("GPU", 0) >= gpus for machine in machines):
        return sum(int(machine.get("GPU", 0) / gpus) for machine in machines), {"num_gpus": gpus}
    largest = max((machine.get("CPU", 0) for machine in machines), default=0)
    cpus = max(1, min(maker.cpus_per_actor, largest))
    return max(1, sum(int(machine.get("CPU", 0) / cpus) for machine in machines)), {"num_cpus": cpus}


class _ShardWriter:
    """The Ray Data actor: makes one shard a call and writes it."""

    def __init__(self, root: str, maker: ShardMaker) -> None:
        self.filesystem, self.folder = filesystems.open_root(root)
        self.maker = maker
        self.is_prepared = False

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        path = f"{self.folder}/{batch['file'][0]}"
        result = {"number": int(batch["number"][0]), "record": "", "statistics": "", "error": ""}
        result["is_unwritable"] = False
        # An exception would reach the driver as a page of Ray's traceback; the message is for the user.
        try:
            if not self.is_prepared:
                self.maker.prepare()
                self.is_prepared = True
            rows, statistics = self.maker.make(json.loads(str(batch["work"][0])))
            record = _write_shard(self.filesystem, path, rows, statistics)
            result |= {"record": record.model_dump_json(), "statistics": json.dumps(statistics)}
        except CatalogError as error:
            result |= {"error": str(error), "is_unwritable": isinstance(error, NotWritableError)}
        except Exception as error:
            _LOGGER.exception("shard %s could not be made", path)
            result["error"] = (
                f"shard {path} could not be made ({type(error).__name__}: {error}). This is a fault of the "
                "program: its traceback is in the log of the worker, as a rule below "
                "/tmp/ray/session_latest/logs. Shards that are complete are kept"
            )
        return {name: [value] for name, value in result.items()}


def _write_shard(
    filesystem: fs.FileSystem, path: str, rows: pa.Table, statistics: Mapping[str, Any]
) -> ShardRecord:
    # What an interrupted build must know of this shard travels inside it, so that file and facts are one.
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
    return ShardRecord(
        file=path.rpartition("/")[2],
        rows=rows.num_rows,
        sha256=hashlib.sha256(data).hexdigest(),
        content=content,
    )


def _complete_shard(filesystem: fs.FileSystem, path: str) -> tuple[ShardRecord, dict[str, Any]] | None:
    """What an earlier build left of this shard, or None where it must be made."""
    if not filesystems.exists(filesystem, path):
        return None
    try:
        rows = read_shard_file(filesystem, path)
        facts = json.loads((rows.schema.metadata or {})[_METADATA])
        sha256 = hashlib.sha256(filesystems.read_buffer(filesystem, path)).hexdigest()
        content = content_digest(rows)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None
    if content != facts["content"]:
        return None
    record = ShardRecord(file=path.rpartition("/")[2], rows=rows.num_rows, sha256=sha256, content=content)
    return record, facts["statistics"]
