"""What is wrong with a stored checkpoint, found before workers start; imports nothing that takes seconds."""

import json
import zipfile
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from safetensors import SafetensorError, safe_open

from data_catalog.storage.folders import Folder
from stmi.checkpoint_files import OF_EVERY_CHECKPOINT
from stmi.checksums import SUMS_FILE, read_sums


def find_fault(checkpoint: Folder) -> str | None:
    """The first file of a checkpoint that is missing, cut off or changed, and why; None where all are sound.

    Raises:
        data_catalog.errors.CatalogError: The checkpoint cannot be reached.
    """
    there = checkpoint.list_files()
    if missing := [name for name in OF_EVERY_CHECKPOINT if name not in there]:
        return f"{missing[0]} is missing"
    if SUMS_FILE not in there:
        # An older version wrote no digests. What is cut off is found all the same, on a disk.
        names = there if checkpoint.is_local else ()
        return next((fault for name in names if (fault := _format_fault(checkpoint.path / name))), None)
    try:
        sums = read_sums(checkpoint.read(SUMS_FILE))
    except ValueError as error:
        return f"{SUMS_FILE} cannot be read: {error}"
    for name, digest in sums.items():
        if name not in there:
            return f"{name} is missing"
        if checkpoint.digest(name) != digest:
            return f"{name} is cut off or changed: its SHA-256 is not that of {SUMS_FILE}"
    return None


def _format_fault(path: Path) -> str | None:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "np"):
                pass
        elif path.suffix == ".parquet":
            parquet.read_metadata(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif not zipfile.is_zipfile(path):
            return f"{path.name} is cut off or changed"
    except (SafetensorError, pa.ArrowInvalid, ValueError) as error:
        return f"{path.name} is cut off or changed: {error}"
    return None
