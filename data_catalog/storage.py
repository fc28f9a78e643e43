"""Files of a catalog on any pyarrow filesystem (local disk, S3, GCS), each written whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from data_catalog.errors import CatalogError

PARTIAL = ".{name}.{unique}.partial"
"""What a file is called until it is complete."""


def open_root(root: str | Path) -> tuple[fs.FileSystem, str]:
    """The filesystem of a catalog root and the root's path in it.

    Args:
        root: A folder (`data/catalog`) or a URI (`s3://bucket/catalog`, `gs://...`, `file:///...`). The
            query of a URI says how its server is reached, for example
            `s3://bucket/catalog?endpoint_override=host:9000&scheme=http&region=us-east-1`.

    Raises:
        CatalogError: If no filesystem handles the URI, or it holds credentials.
    """
    text = str(root)
    if "://" not in text:
        return fs.LocalFileSystem(), str(Path(text).resolve())
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise CatalogError(
            f"catalog {parts.scheme}://...@{parts.netloc.rpartition('@')[2]}{parts.path} holds credentials, "
            "which would end up in logs and records; put them into the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY) or the machine's configuration instead"
        )
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise CatalogError(
            f"catalog {text!r} cannot be opened ({error}); give a folder or a URI such as s3://bucket/folder"
        ) from error
    return filesystem, path.rstrip("/")


def join(root: str | Path, *names: str) -> str:
    """The path or URI of something below a root; the query of a URI stays at its end."""
    text = str(root)
    path, mark, query = text.partition("?") if "://" in text else (text, "", "")
    return "/".join([path.rstrip("/"), *names]) + mark + query


def write_atomically(filesystem: fs.FileSystem, path: str, data: pa.Buffer | bytes) -> None:
    """Write a file at once; as `written_atomically`."""
    with written_atomically(filesystem, path) as stream:
        stream.write(data)


@contextmanager
def written_atomically(filesystem: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream into a file under a name of its own, moved into place at the end: no reader sees half of it.

    Raises:
        CatalogError: If the disk is full or the place cannot be written to.
    """
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/{PARTIAL.format(name=name, unique=uuid.uuid4().hex)}"
    try:
        filesystem.create_dir(folder, recursive=True)
        try:
            with filesystem.open_output_stream(partial, compression=None) as stream:
                yield stream
            if isinstance(filesystem, fs.LocalFileSystem):
                _flush_to_disk(partial)
            filesystem.move(partial, path)
        except BaseException:
            if exists(filesystem, partial):
                filesystem.delete_file(partial)
            raise
    except OSError as error:
        raise CatalogError(
            f"{path} could not be written: {error}. Make room or correct the rights and run the same command "
            "again; shards that are complete are kept"
        ) from error


def _flush_to_disk(path: str) -> None:
    """Make sure that a power cut after the move does not leave an empty file under the final name."""
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())


def exists(filesystem: fs.FileSystem, path: str) -> bool:
    """Whether a file stands at this path.

    Raises:
        CatalogError: If the catalog cannot be reached.
    """
    try:
        return filesystem.get_file_info(path).type == fs.FileType.File
    except OSError as error:
        raise _unreachable(path, error) from error


def list_folders(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Names of the folders in a folder, sorted; none where there is no such folder.

    Raises:
        CatalogError: If the catalog cannot be reached.
    """
    try:
        entries = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    except OSError as error:
        raise _unreachable(folder, error) from error
    return sorted(entry.base_name for entry in entries if entry.type == fs.FileType.Directory)


def _unreachable(path: str, error: OSError) -> CatalogError:
    return CatalogError(
        f"{path} cannot be reached ({error}); check the catalog's address, your rights and the network"
    )


def read_buffer(filesystem: fs.FileSystem, path: str) -> pa.Buffer:
    """The bytes of a file: memory-mapped where the disk is local, fetched whole otherwise."""
    if isinstance(filesystem, fs.LocalFileSystem):
        with pa.memory_map(path) as source:
            return source.read_buffer()
    with filesystem.open_input_file(path) as source:
        return source.read_buffer()
