"""A folder at a path or a URI, whose files are read and written in the same way wherever it is."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from data_catalog.errors import CatalogError, DamagedFileError
from data_catalog.records import describe_invalid
from data_catalog.storage import filesystems

Content = TypeVar("Content")


class Folder:
    """A folder on a disk or any PyArrow filesystem; it need not exist. Can be sent to other processes.

    Args:
        location: Path, or URI as `filesystems.open_root` takes it.

    Attributes:
        location: The absolute path, or the URI.
    """

    def __init__(self, location: "str | Path | Folder") -> None:
        self.location: str = (
            location.location if isinstance(location, Folder) else filesystems.absolute(location)
        )

    def __truediv__(self, name: str) -> "Folder":
        """The folder of this name in it."""
        return Folder(self.file(name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self.location == other.location

    def __hash__(self) -> int:
        return hash(self.location)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    def __str__(self) -> str:
        return self.location

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the filesystem, which may hold credentials.
        return type(self), (self.location,)

    @property
    def name(self) -> str:
        """The last part of the location."""
        return filesystems.split_query(self.location)[0].rpartition("/")[2]

    @property
    def parent(self) -> "Folder":
        """The folder that this one is in; of a bucket, the bucket itself."""
        path, separator, query = filesystems.split_query(self.location)
        above = path.rpartition("/")[0]
        return self if above.endswith(":/") else Folder((above or "/") + separator + query)

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine, or one that is mounted here."""
        return "://" not in self.location

    @property
    def path(self) -> Path:
        """Its path on a disk.

        Raises:
            CatalogError: It is at a URI.
        """
        if not self.is_local:
            raise CatalogError(f"{self} is not on a disk of this machine; name a folder that is")
        return Path(self.location)

    def file(self, name: str) -> str:
        """Path or URI of a file in it."""
        return filesystems.join(self.location, name)

    def has_file(self, name: str) -> bool:
        """Whether there is a file of this name.

        Raises:
            CatalogError: The folder cannot be reached.
        """
        filesystem, path = self._opened
        return filesystems.exists(filesystem, f"{path}/{name}")

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name.

        Raises:
            CatalogError: The folder cannot be reached.
        """
        filesystem, path = self._opened
        return filesystems.has_folder(filesystem, f"{path}/{name}")

    def list_files(self) -> dict[str, int]:
        """Names of its files to their times of change (nanoseconds), sorted; none where it does not exist.

        Raises:
            CatalogError: The folder cannot be reached.
        """
        return filesystems.list_files(*self._opened)

    def list_folders(self) -> list[str]:
        """Names of the folders in it, sorted; none where it does not exist.

        Raises:
            CatalogError: The folder cannot be reached.
        """
        return filesystems.list_folders(*self._opened)

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: There is none of this name.
            CatalogError: The folder cannot be reached.
        """
        filesystem, path = self._opened
        return filesystems.read_bytes(filesystem, f"{path}/{name}")

    def digest(self, name: str) -> str:
        """Hex SHA-256 of the bytes of a file, which are not held in memory at once."""
        filesystem, path = self._opened
        return filesystems.file_digest(filesystem, f"{path}/{name}")

    def read_record(self, name: str, form: "type[Content] | TypeAdapter[Content]", remedy: str) -> Content:
        """A JSON file as the model of its content.

        Args:
            name: Name of the file.
            form: Its model, or what validates it.
            remedy: What to do where the file is damaged.

        Raises:
            FileNotFoundError: There is none of this name.
            DamagedFileError: It is empty, cut off or changed.
            CatalogError: The folder cannot be reached.
        """
        data = self.read(name)
        try:
            return (form if isinstance(form, TypeAdapter) else TypeAdapter(form)).validate_json(data)
        except ValidationError as error:
            raise DamagedFileError(self.file(name), describe_invalid(error, "the file"), remedy) from None

    def write(self, name: str, data: str | bytes) -> None:
        """Write a file completely or not at all.

        Raises:
            NotWritableError: The disk is full, or the folder cannot be written to.
        """
        filesystem, path = self._opened
        filesystems.write_atomically(
            filesystem, f"{path}/{name}", data.encode() if isinstance(data, str) else data
        )

    def delete(self) -> None:
        """Delete it with all it holds, if it is there."""
        filesystems.delete_folder(*self._opened)

    def delete_file(self, name: str) -> None:
        """Delete a file, if it is there."""
        filesystem, path = self._opened
        if self.has_file(name):
            filesystem.delete_file(f"{path}/{name}")

    @contextmanager
    def local_file(self, name: str) -> Iterator[Path]:
        """A file for a library that needs a path: itself, or a copy for as long as it is needed."""
        if self.is_local:
            yield self.path / name
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / Path(name).name
            copy.write_bytes(self.read(name))
            yield copy

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return filesystems.open_root(self.location)
