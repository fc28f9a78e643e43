"""Files of captions that exist already, checked and matched to samples.

A file is a JSON list of `{"item": file name, "description": text}`. A data set has one file per split, or
one per split and modality; then one modality is chosen, or the three captions of a sample are joined.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data_catalog.captions.item_names import file_stem
from data_catalog.errors import CatalogError
from data_catalog.formats import Listing
from data_catalog.samples.held_out import splits_on_disk
from data_catalog.samples.layout import layout_of
from data_catalog.tables.digests import json_digest
from data_catalog.tables.table import Table
from stmi.modality import MODALITIES

MAX_FILE_BYTES = 256 * 2**20
_FORM = '[{"item": file name, "description": text}, ...]'

Choice = Literal["RGB", "NIR", "TIR", "join"]
"""A modality, or all three."""

CaptionFile = tuple[Path, str, str]
"""Path, split and modality ("" for a file with one caption for all modalities)."""


@dataclass
class ReadCaptions:
    """The captions in the files of a data set.

    Attributes:
        captions: The captions of each sample, by its id and the modality ("" if there is one for all).
        digest: SHA-256 over split, modality and bytes of every file.
        absent: Items that name no sample.
        duplicates: Items that are listed twice with the same text.
    """

    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    digest: str = ""
    absent: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)


def find_caption_files(samples: Table, folder: str | Path | None, choose: Choice | None) -> list[CaptionFile]:
    """The files to read, by split and modality.

    Args:
        samples: What the captions are of.
        folder: Where the files lie. None looks where the data set's layout keeps them, below the folder that
            was ingested.
        choose: Which captions to take.

    Raises:
        CatalogError: If one is missing, or the modality must be chosen.
    """
    root, source_format = None, layout_of(samples)
    if folder is None:
        source = samples.manifest.created.get("source")
        if source is None or not Path(source).is_dir():
            raise CatalogError(
                f"captions: the folder that data set {samples.manifest.dataset!r} was ingested from "
                f"({source}) is not there; name the folder of the caption files with --captions"
            )
        root = Path(source)
    modalities = [modality.value for modality in MODALITIES] if choose == "join" else [choose or ""]
    files: list[CaptionFile] = []
    for split in splits_on_disk(samples):
        layout = source_format.caption_files(split)
        paths = {
            modality: root / path if root is not None else Path(folder or "") / PurePosixPath(path).name
            for modality, path in layout.items()
        }
        for modality in modalities:
            if not paths[modality].is_file():
                raise CatalogError(_missing_file(split, paths, modality))
            files.append((paths[modality], split, modality))
    return files


def _missing_file(split: str, paths: Mapping[str, Path], wanted: str) -> str:
    start = f"captions of split {split!r}: {paths[wanted]} is not there"
    if not wanted and any(path.is_file() for name, path in paths.items() if name):
        return f"{start}, but files for modalities are; say which to take with --choose RGB|NIR|TIR|join"
    if wanted and paths[""].is_file():
        return f"{start}, but {paths[''].name} is, one for all modalities; leave out --choose"
    return f"{start}; put it there ({_FORM}), or name another folder with --captions"


def read_caption_files(files: Sequence[CaptionFile], sample_ids: Sequence[str]) -> ReadCaptions:
    """Every caption of the files, matched to the samples by file name.

    Raises:
        CatalogError: If a file is not UTF-8 or JSON of that form, has two texts for an item, or an item that
            could mean two samples. Names file and entry.
    """
    by_name: dict[tuple[str, str], list[str]] = {}
    for sample_id in sample_ids:
        split, name = sample_id.split("/", 1)
        by_name.setdefault((split, name.rpartition("/")[2]), []).append(sample_id)
    read = ReadCaptions()
    sha256 = hashlib.sha256()
    for path, split, modality in files:
        data = _read_bytes(path)
        sha256.update(f"{split}\0{modality}\0{len(data)}\0".encode() + data)
        for number, (item, text) in enumerate(_entries(path, data), start=1):
            named = by_name.get((split, file_stem(item)), [])
            if len(named) > 1:
                raise CatalogError(
                    f"{path} entry {number}: item {item!r} could mean any of {', '.join(named)}; give the "
                    "samples names of their own"
                )
            if not named:
                read.absent.append(f"{path.name}: {item}")
                continue
            by_modality = read.captions.setdefault(named[0], {})
            if by_modality.get(modality, text) != text:
                raise CatalogError(
                    f"{path} entry {number}: item {item!r} was captioned before with another text; keep one"
                )
            if modality in by_modality:
                read.duplicates.append(f"{path.name}: {item}")
            by_modality[modality] = text
    read.digest = sha256.hexdigest()
    return read


def read_listed_captions(listing: Listing, sample_ids: Sequence[str], choose: Choice | None) -> ReadCaptions:
    """The captions of a manifest, as `read_caption_files` gives those of files.

    Raises:
        CatalogError: A modality is chosen.
    """
    if choose is not None:
        raise CatalogError(
            f"--choose={choose}: a manifest has one caption a sample; leave it out, or name a folder of "
            "caption files with --captions"
        )
    known = set(sample_ids)
    texts = {sample_id: " ".join(text.split()) for sample_id, text in listing.captions.items()}
    return ReadCaptions(
        captions={sample_id: {"": text} for sample_id, text in texts.items() if sample_id in known},
        digest=json_digest(texts),
        absent=[sample_id for sample_id in texts if sample_id not in known],
    )


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CatalogError(
                f"{path} has {path.stat().st_size} bytes, expected at most "
                f"{MAX_FILE_BYTES}; is it a caption file?"
            )
        return path.read_bytes()
    except OSError as error:
        raise CatalogError(f"{path} cannot be read ({error.strerror}); correct its rights") from error


def _entries(path: Path, data: bytes) -> list[tuple[str, str]]:
    """Item and text of every entry, runs of white space in texts replaced by one space."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(
            f"{path} is not UTF-8 (byte {error.start}: 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise CatalogError(
            f"{path} line {error.lineno}, column {error.colno} is not JSON ({error.msg}); expected {_FORM}"
        ) from None
    except (RecursionError, ValueError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"cannot be read ({error})"
        raise CatalogError(f"{path} {reason}; expected {_FORM}") from None
    if not isinstance(entries, list):
        raise CatalogError(f"{path} holds a {type(entries).__name__}, expected a list: {_FORM}")
    return [_entry(f"{path} entry {number}", entry) for number, entry in enumerate(entries, start=1)]


def _entry(where: str, entry: Any) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise CatalogError(f"{where} is a {type(entry).__name__}, expected an object: {_FORM}")
    texts = []
    for name in ("item", "description"):
        if name not in entry:
            raise CatalogError(f"{where} has no {name!r}; expected {_FORM}")
        value = entry[name]
        if not isinstance(value, str):
            raise CatalogError(f"{where}: {name} is {value!r:.80}, expected text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise CatalogError(
                f"{where}: {name} holds half a character ({value!a:.80}); write it whole"
            ) from None
        texts.append(" ".join(value.split()))
    if not file_stem(texts[0]):
        raise CatalogError(f"{where}: item {entry['item']!r} names no file; expected a file name")
    return texts[0], texts[1]
