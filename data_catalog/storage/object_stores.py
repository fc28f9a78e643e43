"""Buckets of object storage, as PyArrow filesystems that wait while the storage is away."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache, partial
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.request import urlopen

import pyarrow as pa
from pyarrow import fs

from data_catalog.errors import CatalogError
from data_catalog.storage.patience import Patience, is_temporary
from stmi.uris import presentable_uri

_CONNECT_SECONDS = 3.0
_SILENT_SECONDS = 5.0
"""A server that sends nothing for so long does not answer."""
_ATTEMPTS = 3
"""Attempts of each request of S3, before it has failed: in the worst case after some 20 seconds."""
_GCS_TIME = timedelta(seconds=8)
"""Google's client attempts that long, or a little longer."""
_GOOGLE = "storage.googleapis.com"
_ANY_REGION = "us-east-1"
_CHUNK_BYTES = 8 * 2**20
_MEMORY_BYTES = 64 * 2**20

Answer = TypeVar("Answer")


def open_bucket(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a bucket, and the bucket's name; no request is sent before it is used.

    Args:
        uri: URI of the bucket, with a query, and without a path.

    Raises:
        pyarrow.ArrowInvalid: It is no URI of a bucket.
        OSError: S3 does not say in which region the bucket is.
    """
    bucket = _bucket(uri)
    return fs.PyFileSystem(bucket), bucket.name


class _Bucket(fs.FileSystemHandler):
    """What PyArrow calls for the files of a bucket. Can be sent to other processes, without credentials."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.patience = Patience(presentable_uri(uri))
        self.filesystem, self.name = self.patience.ask(partial(_connect, uri), reaches=False)
        # Who may make the bucket need not find it.
        self._is_found = "allow_bucket_creation" in uri

    def __reduce__(self) -> tuple[Any, ...]:
        return _bucket, (self.uri,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bucket) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        if not self._is_found:
            self.patience.ask(self._find)
            self._is_found = True
        return self.patience.ask(request)

    def _find(self) -> None:
        """Make sure that the bucket exists: without it, reading finds no files and says nothing."""
        if self.filesystem.type_name == "gcs":
            _refuse_silence(self.filesystem)
        try:
            is_missing = self.filesystem.get_file_info(self.name).type == fs.FileType.NotFound
        except OSError as error:
            if is_temporary(error):
                raise
            return  # it may be used without the right to look for it
        if is_missing:
            raise CatalogError(
                f"bucket {self.name} of {self.patience.name} does not exist; correct its name, or make it"
            )

    def get_type_name(self) -> str:
        return str(self.filesystem.type_name)

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return self._ask(lambda: self.filesystem.get_file_info(paths))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return self._ask(lambda: self.filesystem.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._ask(lambda: self.filesystem.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._ask(lambda: self.filesystem.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self._ask(lambda: self.filesystem.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("the buckets of a storage are not deleted")

    def delete_file(self, path: str) -> None:
        self._ask(lambda: self.filesystem.delete_file(path))

    def move(self, source: str, target: str) -> None:
        self._ask(lambda: self.filesystem.move(source, target))

    def copy_file(self, source: str, target: str) -> None:
        self._ask(lambda: self.filesystem.copy_file(source, target))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Reader(self._ask(lambda: self.filesystem.open_input_file(path)), self), "r")

    def open_output_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.NativeFile:
        return pa.PythonFile(_Writer(self, path, metadata), "w")

    def open_append_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.NativeFile:
        raise NotImplementedError("object storage cannot add to an object")


@cache
def _bucket(uri: str) -> _Bucket:
    """All that use a bucket in this process know together when it went away."""
    return _Bucket(uri)


class _Reader:
    """A file that is read on where a request failed."""

    def __init__(self, file: pa.NativeFile, bucket: _Bucket) -> None:
        self._file = file
        self._ask = bucket.patience.ask

    def read(self, size: int | None = None) -> bytes:
        return self._ask(lambda: self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Writer:
    """A file that is uploaded when it is closed, anew where that fails."""

    def __init__(self, bucket: _Bucket, path: str, metadata: Mapping[str, str] | None) -> None:
        self._bucket = bucket
        self._path = path
        self._metadata = metadata
        self._data = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 - closed by `close`

    @property
    def closed(self) -> bool:
        return self._data.closed

    def write(self, data: bytes) -> int:
        return self._data.write(data)

    def flush(self) -> None:
        """An object is stored as a whole."""

    def close(self) -> None:
        if self.closed:
            return
        with self._data:
            self._bucket._ask(self._upload)

    def _upload(self) -> None:
        self._data.seek(0)
        with self._bucket.filesystem.open_output_stream(
            self._path, compression=None, metadata=self._metadata
        ) as stream:
            shutil.copyfileobj(self._data, stream, _CHUNK_BYTES)


def _connect(uri: str) -> tuple[fs.FileSystem, str]:
    """PyArrow's own filesystem of a bucket, which gives up early, and the bucket's name."""
    if not uri.startswith("s3:"):
        filesystem, name = fs.FileSystem.from_uri(uri)
        return fs.GcsFileSystem(**_options(filesystem) | {"retry_time_limit": _GCS_TIME}), name
    if "region=" not in uri:
        # Where no other server is named, PyArrow asks AWS for the region: for minutes if nothing answers.
        separator = "&" if "?" in uri else "?"
        filesystem, name = fs.FileSystem.from_uri(f"{uri}{separator}region={_ANY_REGION}")
        if not _options(filesystem)["endpoint_override"]:
            try:
                _s3(filesystem).get_file_info(name)
            except OSError as error:
                if is_temporary(error):
                    raise
    filesystem, name = fs.FileSystem.from_uri(uri)
    return _s3(filesystem), name


def _s3(filesystem: fs.S3FileSystem) -> fs.S3FileSystem:
    changes = {
        "connect_timeout": _CONNECT_SECONDS,
        "request_timeout": _SILENT_SECONDS,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        # Several files that are closed at once would wait for each other's uploads forever.
        "background_writes": False,
        # A small file is one request.
        "allow_delayed_open": True,
    }
    return fs.S3FileSystem(**_options(filesystem) | changes)


def _refuse_silence(filesystem: fs.GcsFileSystem) -> None:
    """Make sure that Google's server says anything: its client waits two minutes for one that does not.

    Raises:
        TimeoutError: It does not.
    """
    options = _options(filesystem)
    url = f"{options['scheme'] or 'https'}://{options['endpoint_override'] or _GOOGLE}"
    try:
        urlopen(url, timeout=_SILENT_SECONDS).close()
    except (OSError, HTTPException) as error:
        if isinstance(getattr(error, "reason", error), TimeoutError):
            raise TimeoutError(f"{url} has said nothing for {_SILENT_SECONDS:.0f} s") from error
        # Any other answer is one; Google's client says what is wrong.


def _options(filesystem: fs.FileSystem) -> dict[str, Any]:
    """All options of a filesystem, from its URI and the environment: a URI cannot say how long to wait."""
    _, (options,) = filesystem.__reduce__()
    return options
