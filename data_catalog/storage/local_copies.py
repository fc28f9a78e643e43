"""Local copies of remote shards, so that they can be memory-mapped; each is fetched once per machine.

A copy is named after the SHA-256 of its bytes, which is checked while it is fetched, so all catalogs, data
sets and runs that need the same shard share it. Later only the size is compared, because hashing would read
the whole file; a truncated copy is fetched again. The folder may be deleted while no run reads from it.
"""

import hashlib
import os
import uuid
from pathlib import Path

from pyarrow import fs

from data_catalog.errors import CatalogError, NotWritableError, StorageAwayError
from data_catalog.storage.claims import claim
from data_catalog.storage.folders import Folder

FOLDER_VARIABLE = "DATA_CATALOG_CACHE"
_CHUNK_BYTES = 8 * 2**20


def copies_folder() -> Path:
    """Folder of the copies: that in DATA_CATALOG_CACHE, or one in the home folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "stmi" / "shards"


def local_files(folder: Folder | Path) -> Path:
    """Where this machine keeps what must lie on a disk and belongs to a folder: in it, or beside the copies.

    What lies beside the copies is made again where it is missing.
    """
    folder = Folder(folder)
    if folder.is_local:
        return folder.path
    digest = hashlib.sha256(folder.location.encode()).hexdigest()
    return copies_folder().resolve() / "folders" / f"{folder.name}-{digest[:8]}"


def local_copy(filesystem: fs.FileSystem, path: str, sha256: str) -> Path:
    """The local copy of a remote file, fetched unless there is one of the same size.

    If several processes of one machine want it, one fetches it and the others wait.

    Args:
        filesystem: Where the file is.
        path: Its path there.
        sha256: Expected hash of its bytes.

    Raises:
        CatalogError: If it cannot be fetched or stored, or its bytes have another hash.
    """
    copy = copies_folder() / sha256[:2] / f"{sha256}{Path(path).suffix}"
    try:
        with claim(copy.with_suffix(".claim"), wait=lambda: True):
            size = filesystem.get_file_info(path).size
            if not copy.exists() or copy.stat().st_size != size:
                _fetch(filesystem, path, sha256, copy)
    except StorageAwayError:
        raise
    except (OSError, NotWritableError) as error:
        raise CatalogError(
            f"{path} could not be fetched to {copy.parent} ({error}); make room there, or name another "
            f"folder in the environment variable {FOLDER_VARIABLE}"
        ) from error
    return copy


def _fetch(filesystem: fs.FileSystem, path: str, sha256: str, copy: Path) -> None:
    partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}.partial")
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path, compression=None) as source, partial.open("wb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
        if digest.hexdigest() != sha256:
            raise CatalogError(
                f"{path} has SHA-256 {digest.hexdigest()[:12]}, expected {sha256[:12]}; its bytes changed, "
                "so delete the folder of that table and run its step again"
            )
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)
