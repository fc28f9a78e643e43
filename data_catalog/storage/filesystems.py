"""Files on any PyArrow filesystem (local disk, S3, GCS), each written completely or not at all."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from data_catalog.errors import CatalogError, NotWritableError, StorageAwayError
from data_catalog.storage.object_stores import open_bucket
from stmi.uris import presentable_uri

PARTIAL = ".{name}.{unique}.partial"
"""Name of a file until it is complete."""

OBJECT_STORES = ("s3", "gcs", "abfs")
"""PyArrow's names of filesystems that have objects in place of files."""
ONE_UPLOAD_BYTES = 5 * 2**20
"""PyArrow uploads so much in one piece on every one of them."""
_CHUNK_BYTES = 8 * 2**20

_SECRET = re.compile(r"secret|password|token|key|signature|^sig$", re.IGNORECASE)
# Of S3, and of Google's client.
_DENIED = re.compile(
    r"ACCESS_DENIED|ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|TOKEN|HTTP status 40[13]"
    r"|Status\((PERMISSION_DENIED|UNAUTHENTICATED)|access token"
)


def open_root(root: str | Path) -> tuple[fs.FileSystem, str]:
    """The filesystem of a root and the root's path in it.

    Args:
        root: A folder (`data/catalog`) or a URI (`s3://bucket/catalog`, `gs://...`, `file:///...`). The
            query of a URI says how to reach its server, for example
            `s3://bucket/catalog?endpoint_override=host:9000&scheme=http&region=us-east-1`.

    Raises:
        CatalogError: If no filesystem handles the URI, or it holds credentials.
    """
    text = str(root)
    if "://" not in text:
        return fs.LocalFileSystem(), str(Path(text).resolve())
    shown = presentable_uri(text)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise CatalogError(_unopened(shown, str(error))) from None
    if _holds_credentials(parts):
        raise CatalogError(
            f"{shown} holds credentials, which would end up in logs and records; put them into the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the machine's configuration instead"
        )
    try:
        if parts.scheme in ("s3", "gs") and ":" not in parts.netloc and "@" not in parts.path:
            filesystem, name = open_bucket(parts._replace(path="", fragment="").geturl())
            return filesystem, f"{name}{unquote(parts.path)}".rstrip("/")
        filesystem, path = fs.FileSystem.from_uri(text)
    except OSError as error:
        raise _unreachable(shown, error) from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        # Arrow's message quotes the URI, and a traceback would show that message again.
        raise CatalogError(_unopened(shown, str(error).replace(text, shown))) from None
    return filesystem, path.rstrip("/")


def _holds_credentials(parts: SplitResult) -> bool:
    """Whether a URI holds a password, a key or a token; a user name alone is none (`gs://anonymous@bucket`)."""
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    is_key = parts.scheme == "s3" and parts.username is not None
    return is_key or bool(parts.password) or any(map(_SECRET.search, names))


def _unopened(shown: str, reason: str) -> str:
    return f"{shown} cannot be opened ({reason}); give a folder or a URI such as s3://bucket/folder"


def join(root: str | Path, *names: str) -> str:
    """The path or URI of a file or folder below a root; the query of a URI stays at its end."""
    path, separator, query = split_query(str(root))
    return "/".join([path.rstrip("/"), *names]) + separator + query


def split_query(location: str) -> tuple[str, str, str]:
    """What comes before the query of a URI, the question mark and the query; a path has no query."""
    return location.partition("?") if "://" in location else (location, "", "")


def absolute(location: str | Path) -> str:
    """A location that means the same in every process: an absolute path, or a URI of another place."""
    text = str(location)
    if text.startswith("file://"):
        return open_root(text)[1]
    if "://" not in text:
        return str(Path(text).resolve())
    path, separator, query = split_query(text)
    return path.rstrip("/") + separator + query


def remove_partial_files(filesystem: fs.FileSystem, folder: str) -> None:
    """Remove the incomplete files that killed writers left in a folder; call it with the right to write."""
    for name in list_files(filesystem, folder):
        if name.startswith(".") and name.endswith(".partial"):
            filesystem.delete_file(f"{folder}/{name}")


def write_atomically(filesystem: fs.FileSystem, path: str, data: pa.Buffer | bytes) -> None:
    """Write all bytes of a file, as `written_atomically` does."""
    if filesystem.type_name.removeprefix("py::") in OBJECT_STORES and len(data) <= ONE_UPLOAD_BYTES:
        # An object that is uploaded in one piece is there as a whole or not at all; a rename would be a copy.
        try:
            with filesystem.open_output_stream(path, compression=None) as stream:
                stream.write(data)
        except OSError as error:
            raise not_written(path, error) from error
        return
    with written_atomically(filesystem, path) as stream:
        stream.write(data)


@contextmanager
def written_atomically(filesystem: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream into a file with a temporary name, renamed at the end, so that no reader sees half of it.

    Raises:
        NotWritableError: If the disk is full or the folder cannot be written to.
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
        raise not_written(path, error) from error


def not_written(path: str, error: Exception) -> CatalogError:
    """The error of a file that cannot be written: where, why and what to do."""
    return _refused(path, error) or NotWritableError(
        f"{path} could not be written: {error}. Make room or correct the rights and run the same command "
        "again; what is complete is kept"
    )


def _flush_to_disk(path: str) -> None:
    """Make sure that a power cut after the rename does not leave an empty file under the final name."""
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())


def exists(filesystem: fs.FileSystem, path: str) -> bool:
    """Whether there is a file at this path.

    Raises:
        CatalogError: If the catalog cannot be reached.
    """
    try:
        return filesystem.get_file_info(path).type == fs.FileType.File
    except OSError as error:
        raise _unreachable(path, error) from error


def file_facts(filesystem: fs.FileSystem, path: str) -> tuple[int, int] | None:
    """Size (bytes) and time of change (nanoseconds) of a file; None where there is none.

    Raises:
        CatalogError: If it cannot be reached.
    """
    try:
        found = filesystem.get_file_info(path)
    except OSError as error:
        raise _unreachable(path, error) from error
    return (found.size, found.mtime_ns) if found.type == fs.FileType.File else None


def has_folder(filesystem: fs.FileSystem, path: str) -> bool:
    """Whether there is a folder at this path; object storage has those that something is in.

    Raises:
        CatalogError: If it cannot be reached.
    """
    try:
        return filesystem.get_file_info(path).type == fs.FileType.Directory
    except OSError as error:
        raise _unreachable(path, error) from error


def delete_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Delete a folder with all it holds, if it is there."""
    if has_folder(filesystem, path):
        filesystem.delete_dir(path)


def read_bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    """All bytes of a file.

    Raises:
        FileNotFoundError: If there is none at this path.
        CatalogError: If it cannot be reached.
    """
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return stream.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreachable(path, error) from error


def file_digest(filesystem: fs.FileSystem, path: str) -> str:
    """Hex SHA-256 of the bytes of a file."""
    sha256 = hashlib.sha256()
    with filesystem.open_input_stream(path, compression=None) as source:
        while chunk := source.read(_CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def list_files(filesystem: fs.FileSystem, folder: str) -> dict[str, int]:
    """Names of the files in a folder to their modification times (nanoseconds), in the order of names.

    Raises:
        CatalogError: If the catalog cannot be reached.
    """
    entries = _list(filesystem, folder)
    files = {entry.base_name: entry.mtime_ns for entry in entries if entry.type == fs.FileType.File}
    return dict(sorted(files.items()))


def list_folders(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Names of the folders in a folder, sorted; none if the folder does not exist.

    Raises:
        CatalogError: If the catalog cannot be reached.
    """
    entries = _list(filesystem, folder)
    return sorted(entry.base_name for entry in entries if entry.type == fs.FileType.Directory)


def _list(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    try:
        return filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    except OSError as error:
        raise _unreachable(folder, error) from error


def _unreachable(path: str, error: OSError) -> CatalogError:
    return _refused(path, error) or CatalogError(
        f"{path} cannot be reached ({error}); check its address, your rights and the network"
    )


def _refused(path: str, error: Exception) -> CatalogError | None:
    """What an error says of storage that was waited for in vain, or lets nobody in; None for other errors."""
    if isinstance(error, StorageAwayError):
        # A new one, so that no error is its own cause.
        return StorageAwayError(str(error))
    if _DENIED.search(str(error)) is None:
        return None
    return NotWritableError(
        f"{path} cannot be reached: there are no credentials for it, or they do not allow this ({error}). "
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (gs://: GOOGLE_APPLICATION_CREDENTIALS), or give "
        "the machine a role that may read and write there; on a cluster, do so on every node"
    )


def read_buffer(filesystem: fs.FileSystem, path: str) -> pa.Buffer:
    """The bytes of a file: memory-mapped on a local disk, otherwise read into memory."""
    if isinstance(filesystem, fs.LocalFileSystem):
        with pa.memory_map(path) as source:
            return source.read_buffer()
    with filesystem.open_input_file(path) as source:
        return source.read_buffer()
