"""What stands for the content of files in the key of a table: a digest of their bytes, and no time.

Digests are kept on this machine, with the size and the time of change that the file had, so that a file is
read again only when these differ: `$DATA_CATALOG_CACHE/files/<hash of the folder>.json`. The times are a hint
for that alone; copies of files have the same digests.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote_from_bytes

from pydantic import ValidationError

from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.records import Record, describe_invalid
from data_catalog.samples.source_images import failing_disk_ends_ingest, is_uri, read_source, uri_facts
from data_catalog.storage.folders import Folder
from data_catalog.storage.local_copies import copies_folder

_THREADS = 8
"""Reading and hashing release the GIL."""

_LOGGER = logging.getLogger(__name__)


class _Known(Record):
    """What was found in a file when it had this size (bytes) and time of change (nanoseconds)."""

    size: int
    time: int
    digest: str


class _KnownFiles(Record):
    """Files by their quoted path below the folder: a name need not be UTF-8."""

    files: dict[str, _Known]


def digest_files(root: Path, files: Iterable[str]) -> dict[str, str]:
    """What stands for the content of files: the SHA-256 of the bytes, or why they cannot be used.

    Args:
        root: A folder.
        files: Paths below it, or URIs.

    Raises:
        CatalogError: The disk or the network fails.
    """
    root = root.resolve()
    folder = Folder(copies_folder()) / "files"
    name = f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"
    known = _read(folder, name)

    def look(file: str) -> tuple[str, _Known | None]:
        """What is in a file, and what to remember of it."""
        before = known.get(_quoted(file))
        with failing_disk_ends_ingest():
            facts = uri_facts(file) if is_uri(file) else _facts(root / file)
            if before is not None and facts == (before.size, before.time):
                return before.digest, before
            try:
                digest = hashlib.sha256(read_source(root, file)).hexdigest()
            except ValueError as error:
                return str(error), None
        return digest, facts and _Known(size=facts[0], time=facts[1], digest=digest)

    names = list(dict.fromkeys(files))
    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(zip(names, threads.map(look, names), strict=True))
    remembered = known | {_quoted(file): entry for file, (_, entry) in found.items() if entry is not None}
    if remembered != known:
        _write(folder, name, remembered)
    return {file: content for file, (content, _) in found.items()}


def _facts(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None for a file that cannot be read now.

    It is the time that nobody can set: that of the content may be an archive's, the same for all files.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_ctime_ns) if os.access(path, os.R_OK) else None


def _quoted(file: str) -> str:
    return quote_from_bytes(os.fsencode(file))


def _read(folder: Folder, name: str) -> dict[str, _Known]:
    try:
        return _KnownFiles.model_validate_json(folder.read(name)).files
    except FileNotFoundError:
        return {}
    except (ValidationError, CatalogError) as error:
        reason = f"is damaged ({describe_invalid(error)})" if isinstance(error, ValidationError) else error
        _LOGGER.warning("%s: %s; every file is read again", folder.file(name), reason)
        return {}


def _write(folder: Folder, name: str, known: dict[str, _Known]) -> None:
    try:
        folder.write(name, _KnownFiles(files=known).model_dump_json())
    except NotWritableError as error:
        _LOGGER.warning("the next call will read every file again: %s", error)
