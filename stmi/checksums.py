"""Digests of the files of a checkpoint, which has them in `SHA256SUMS`, in the form of `sha256sum`."""

import hashlib
from pathlib import Path

SUMS_FILE = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """List the digests of all files of a folder in it."""
    lines = [f"{file_digest(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def read_sums(content: bytes) -> dict[str, str]:
    """File name to digest, of the content of a list.

    Raises:
        ValueError: It is empty, cut off or changed.
    """
    lines = content.decode().split("\n")
    sums = dict(line.split("  ")[::-1] for line in lines[:-1])
    if not sums or lines[-1] or any(len(digest) != 64 for digest in sums.values()):
        raise ValueError("it is cut off")
    return sums


def find_change(path: Path, sums: Path) -> str | None:
    """What is wrong with a file of a folder; None where nothing is, or the list does not name it.

    Args:
        path: The file.
        sums: The list; where there is none, an older version wrote the folder.
    """
    if not sums.is_file():
        return None
    try:
        expected = read_sums(sums.read_bytes()).get(path.name)
    except ValueError as error:
        return f"its {SUMS_FILE} cannot be read: {error}"
    if expected in (None, found := file_digest(path)):
        return None
    return f"its SHA-256 is {found[:12]}, expected {str(expected)[:12]}"


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
