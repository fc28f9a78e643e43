"""Embeddings of a gallery and indexes of them, kept until the gallery's content or the model is another one.

    WORKSPACE/search/<run>/<gallery>-<hash of its location>/<fingerprint>/
        embeddings.parquet   U, G and T of each sample
        U-Flat.faiss         an index of one feature, made when it is first needed
        gallery.json         written last: without it, nothing is there

The fingerprint is that of the model and of the content of the gallery. Where the content has changed, the
embeddings of samples that are the same are taken over, and the older folder is removed. Of a workspace at a
URI the folder lies on this machine, beside the local copies of shards.
"""

import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data_catalog.errors import DamagedFileError
from data_catalog.records import Record
from data_catalog.storage.claims import claim_unless
from data_catalog.storage.folders import Folder
from data_catalog.tables.digests import json_digest
from experiments.evaluating.parquet_files import embedding_parts, read_features, write_parquet
from experiments.experiment_config import ConfigError
from experiments.run.evaluation import retrieval_features
from experiments.searching.galleries import OWN_FEATURES, Gallery
from stmi.processors import usable_processors
from stmi.retrieval.metrics import as_distances, normalise

EXACT = "Flat"
"""The index that compares a query with every sample."""
RECORD_FILE = "gallery.json"
EMBEDDINGS_FILE = "embeddings.parquet"
VERSION = 1
"""Version of the files of a folder."""
_ROWS = 8192
"""Rows that are normalised at a time."""


class GalleryRecord(Record):
    """What a folder of a kept gallery holds (`gallery.json`)."""

    model: str
    """Digest of the trained run."""
    gallery: str
    """Digest of the content."""
    location: str
    samples: int
    left_out: dict[str, str]
    """Samples that could not be used, and why."""


@dataclass(frozen=True)
class KeptGallery:
    """A gallery that is embedded.

    Attributes:
        folder: Where its files are.
        record: What they hold.
        embedded: How many of its samples were embedded by this process.
    """

    folder: Path
    record: GalleryRecord
    embedded: int

    def labels(self, rows: np.ndarray) -> dict[str, list[Any]]:
        """What is known of some samples, by column."""
        path = self.folder / EMBEDDINGS_FILE
        with _damage_is_named(path):
            file = pq.ParquetFile(path)
            names = [name for name in file.schema_arrow.names if name not in OWN_FEATURES]
            return file.read(columns=names).take(rows).to_pydict()

    def search(self, index: "faiss.Index", query: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest samples to one query.

        Args:
            index: Index of the same feature, as `open_index` gives it.
            query: `(1, width)`, of any length.
            top: How many at most.

        Returns:
            Their rows and their distances, rising: Euclidean between normalised features, 0 to 2.
        """
        cosines, rows = index.search(normalise(query), min(top, self.record.samples))
        found = rows[0] >= 0
        return rows[0, found], as_distances(-cosines[0, found])

    def open_index(self, feature: str, kind: str = EXACT) -> "faiss.Index":
        """The index of a feature, made where it is missing; its vectors are mapped from the disk.

        Args:
            feature: Its name.
            kind: As `faiss.index_factory` takes it.

        Raises:
            ConfigError: The gallery is too small for it.
            DamagedFileError: A file of it is damaged.
        """
        path = self.folder / f"{feature}-{re.sub(r'[^A-Za-z0-9]+', '_', kind)}.faiss"
        if not path.is_file():
            self._write_index(path, self._feature(feature), kind)
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            reason = str(error).rpartition("\n")[2]
        else:
            if index.ntotal == self.record.samples:
                return index
            reason = f"it has {index.ntotal} vectors, expected {self.record.samples}"
        raise DamagedFileError(path, reason, "delete it, and the same command makes it again")

    def _feature(self, name: str) -> np.ndarray:
        file = self.folder / EMBEDDINGS_FILE
        with _damage_is_named(file):
            if name in OWN_FEATURES:
                return read_features(file, [name])[name]
            stored = {own: torch.tensor(values) for own, values in read_features(file, OWN_FEATURES).items()}
        return retrieval_features(stored)[name]

    def _write_index(self, path: Path, values: np.ndarray, kind: str) -> None:
        index = new_index(values.shape[1], kind)
        faiss.omp_set_num_threads(usable_processors())
        try:
            if not index.is_trained:
                index.train(normalise(values))
            for start in range(0, len(values), _ROWS):
                index.add(normalise(values[start : start + _ROWS]))
        except RuntimeError as error:
            reason = str(error).rpartition("failed: ")[2].strip()
            raise ConfigError(
                f"--index={kind} cannot be made of the {len(values)} samples of the gallery ({reason}); use "
                f"{EXACT}, which compares all"
            ) from None
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            faiss.write_index(index, str(partial))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _damage_is_named(file: Path) -> Iterator[None]:
    """Name the file of embeddings that cannot be read."""
    try:
        yield
    except (pa.ArrowException, FileNotFoundError) as error:
        raise DamagedFileError(
            file, str(error), f"delete the folder {file.parent}, and the same command embeds the gallery anew"
        ) from None


def new_index(width: int, kind: str) -> "faiss.Index":
    """An empty index of cosines, for vectors of length one.

    Raises:
        ConfigError: faiss knows no such index.
    """
    try:
        return faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ConfigError(
            f"--index={kind}: faiss.index_factory makes none of width {width}; expected {EXACT} (exact), or "
            "one such as HNSW32 or IVF1024,Flat"
        ) from None


def keep(gallery: Gallery, model: str, root: Path) -> KeptGallery:
    """The embeddings of a gallery, found or made.

    Args:
        gallery: The samples.
        model: Digest of the trained run.
        root: Folder of all galleries of the run.

    Raises:
        NotWritableError: They are not there, and the folder cannot be written to.
        ConfigError: No sample can be used.
        DamagedFileError: A kept file is damaged.
    """
    kept = root / f"{gallery.name}-{hashlib.sha256(gallery.location.encode()).hexdigest()[:8]}"
    fingerprint = json_digest({"version": VERSION, "model": model, "gallery": gallery.digest})
    folder = kept / fingerprint[:16]
    embedded = 0
    if _read(folder) is None:
        with claim_unless(kept, lambda: _read(folder) is not None) as held:
            if held and _read(folder) is None:
                embedded = _embed(gallery, model, folder)
    record = _read(folder)
    assert record is not None
    return KeptGallery(folder, record, embedded)


def _embed(gallery: Gallery, model: str, folder: Path) -> int:
    """Make the embeddings in a folder, from those of an earlier state of the gallery where they are the same.

    Those of other models stay, such as of another epoch of the run.
    """
    others = {path: _read(path) for path in folder.parent.iterdir() if path.is_dir() and path != folder}
    same_model = [path for path, record in others.items() if record is not None and record.model == model]
    earlier = same_model[0] / EMBEDDINGS_FILE if same_model else None
    with _damage_is_named(earlier) if earlier else nullcontext():
        made = gallery.embed(earlier)
    write_parquet(str(folder / EMBEDDINGS_FILE), embedding_parts(made.labels, made.features))
    record = GalleryRecord(
        model=model,
        gallery=gallery.digest,
        location=gallery.location,
        samples=len(made.labels["sample_id"]),
        left_out=made.left_out,
    )
    Folder(folder).write(RECORD_FILE, record.to_json() + "\n")
    incomplete = [path for path, record in others.items() if record is None]
    for path in (*same_model, *incomplete):
        shutil.rmtree(path)
    return made.embedded


def _read(folder: Path) -> GalleryRecord | None:
    try:
        return Folder(folder).read_record(RECORD_FILE, GalleryRecord, f"delete the folder {folder}")
    except FileNotFoundError:
        return None
