"""Image folders to the `samples` table: the original bytes, checked, with identity, camera and split.

What is broken does not stop the rest: such a file goes to a quarantine list with the reason, its sample
is left out, and the `sample_index` of the others stays what it would have been.
"""

import errno
import hashlib
import io
import json
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from data_catalog.errors import CatalogError
from data_catalog.formats import FORMATS, SIDE_BY_SIDE, Listing, Rejected, SourceSample
from data_catalog.formats.rgbnt201 import SYNTHESIS_MANIFEST
from data_catalog.progress import Progress
from data_catalog.records import Record
from data_catalog.samples.held_out import hold_out
from data_catalog.tables.building import ShardMaker, build_table
from data_catalog.tables.schemas import SAMPLES_SCHEMA, TableKind
from data_catalog.tables.table import Table
from stmi.modality import MODALITIES, Modality

MAX_PIXELS = 64 * 2**20
MAX_FILE_BYTES = 64 * 2**20
_SIZE_PROBES = 512
_FAULTS_OF_FILES = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
"""What stays until somebody corrects the file; anything else is the disk's or the network's, and may pass."""
_READABLE = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")

Size = tuple[int, int]
"""Height and width, in pixels."""


class SplitSize(Record):
    """How much a split holds."""

    samples: int
    identities: int


class QuarantinedFile(Record):
    """A file that was left out, with its sample."""

    file: str
    """Path below the source folder."""
    reason: str


class SamplesStatistics(Record):
    """Statistics of a `samples` table."""

    splits: dict[str, SplitSize]
    cameras: tuple[int, ...]
    quarantined: tuple[QuarantinedFile, ...]


class IngestSettings(BaseModel):
    """What an ingest takes for a good sample, and how it cuts the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "rgbnt201"
    size: Size | Literal["most common", "any"] = "most common"
    """Height and width that every image must have; or the size that most of the (RGB) images have, and any
    where not even half of them have it: they were cut out one by one, and the view makes them equal."""
    samples_per_shard: int = Field(512, ge=1)
    validation_identities: int = Field(0, ge=0)
    """Training identities to hold out for validation, where the data set has no split for it."""


def ingest(
    source: str | Path,
    catalog: str | Path,
    dataset: str,
    settings: IngestSettings | None = None,
    progress: Progress | None = None,
) -> Table:
    """The `samples` table of a source folder.

    Args:
        source: Folder in the layout `settings.format`.
        catalog: Root of the catalog, folder or URI.
        dataset: Name under which the catalog keeps it.
        settings: Format, expected size, shard size.
        progress: Called as shards complete.

    Returns:
        The table; its `statistics` are `SamplesStatistics`.

    Raises:
        CatalogError: If the folder is not of the layout, or no good sample is left in one of its splits.
    """
    settings = settings or IngestSettings()
    if settings.format not in FORMATS:
        raise CatalogError(
            f"format {settings.format!r} is not known; use one of {', '.join(sorted(FORMATS))}"
        )
    _require_utf8(Path(source).resolve())
    listing = FORMATS[settings.format].list_samples(Path(source))
    listing = replace(listing, samples=hold_out(listing.samples, settings.validation_identities))
    listed = Counter(sample.split for sample in listing.samples)
    size = _most_common_size(listing) if settings.size == "most common" else settings.size

    def summarise(shards: list[dict[str, Any]]) -> dict[str, Any]:
        statistics = _summarise(shards, listing.rejected)
        for split in listed:
            if split not in statistics.splits:
                own = {file for s in listing.samples if s.split == split for file in s.files.values()}
                faults = statistics.quarantined
                first = next((fault for fault in faults if fault.file in own), faults[0])
                raise CatalogError(
                    f"source {source}: none of the {listed[split]} samples of split {split!r} can be used "
                    f"(first: {first.file}: {first.reason}); correct the files and run ingest again"
                )
        return statistics.model_dump(mode="json")

    return build_table(
        catalog=catalog,
        dataset=dataset,
        kind=TableKind.SAMPLES,
        settings=settings.model_dump() | {"size": size},
        inputs={},
        work=_work(listing.samples, settings.samples_per_shard),
        maker=_SamplesMaker(listing.root.resolve(), None if size == "any" else size),
        summarise=summarise,
        key_extra=_fingerprint(listing),
        created={"source": str(listing.root.resolve()), "card": _card_name(listing.root, settings.format)},
        progress=progress,
    )


def sample_digest(*files: bytes) -> str:
    """SHA-256 over the files of a sample, each preceded by its length (8 bytes, big-endian)."""
    sha256 = hashlib.sha256()
    for data in files:
        sha256.update(len(data).to_bytes(8, "big"))
        sha256.update(data)
    return sha256.hexdigest()


def image_size(data: bytes) -> Size:
    """Height and width of a file that holds a sound colour JPEG.

    Raises:
        ValueError: If it does not; the message is the reason, to be read after the file's name.
    """
    if not data:
        raise ValueError("is empty (zero bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_READABLE) as image:
                if image.format != "JPEG":
                    raise ValueError(f"is a {image.format} file, expected JPEG")
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(
                        f"has {image.width * image.height} pixels, expected at most {MAX_PIXELS}"
                    )
                if image.mode != "RGB":
                    kind = {"L": "greyscale", "CMYK": "CMYK"}.get(image.mode, f"of mode {image.mode}")
                    raise ValueError(f"is {kind}, expected a colour image (three channels)")
                image.load()
                return image.height, image.width
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"decodes to far more than {MAX_PIXELS} pixels, expected at most that") from None
    except UnidentifiedImageError:
        raise ValueError("is not an image, expected JPEG") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded ({error})") from None


def _most_common_size(listing: Listing) -> Size | Literal["any"]:
    """The size of at least half of the RGB images, among some 512 spread over the data set."""
    files = [
        (file, 1 if modality == Modality.RGB else len(MODALITIES))
        for sample in listing.samples
        for modality, file in sample.files.items()
        if modality in (Modality.RGB, SIDE_BY_SIDE)
    ]
    sizes: Counter[Size] = Counter()
    for file, images in files[:: max(1, len(files) // _SIZE_PROBES)]:
        if not (listing.root / file).is_file():
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(listing.root / file, formats=_READABLE) as image:
                    sizes[image.height, image.width // images] += 1
        except (OSError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError):
            continue
    size, count = max(sizes.items(), key=lambda item: (item[1], item[0]), default=(None, 0))
    return "any" if size is None or 2 * count < sizes.total() else size


def _card_name(root: Path, source_format: str) -> str:
    """Card of what lies there: that of the layout, or of the benchmark where it was drawn here."""
    drawn = root.resolve().parent / SYNTHESIS_MANIFEST
    try:
        kind = json.loads(drawn.read_text(encoding="utf-8"))["settings"]["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return source_format
    return f"synthetic_{kind}"


def _require_utf8(root: Path) -> None:
    """The manifest tells where a table came from, as UTF-8."""
    try:
        str(root).encode()
    except UnicodeEncodeError:
        raise CatalogError(
            f"source {os.fsencode(root)!r}: the folder's name is not UTF-8; rename it and run ingest again"
        ) from None


def _fingerprint(listing: Listing) -> str:
    """A short-cut for the content of a source folder: names, sizes and times of change of its files."""
    sha256 = hashlib.sha256()
    files = [
        file
        for sample in listing.samples
        for of in (sample.files, sample.query_files)
        for file in of.values()
    ]
    for path in files + [rejected.file for rejected in listing.rejected]:
        facts = (path, -1, -1)
        # One that cannot be read now, which ingest will say, may be read another time with the same facts.
        with suppress(OSError):
            if os.access(listing.root / path, os.R_OK):
                status = (listing.root / path).stat()
                facts = (path, status.st_size, status.st_mtime_ns)
        sha256.update(repr(facts).encode("utf-8", "surrogateescape"))
    return sha256.hexdigest()


def _work(samples: Sequence[SourceSample], samples_per_shard: int) -> list[dict[str, Any]]:
    """What each shard holds: neighbours in the order of sample ids, all of one split."""
    work: list[dict[str, Any]] = []
    rows = [{"sample_index": index, **asdict(sample)} for index, sample in enumerate(samples)]
    for _, group in groupby(rows, key=itemgetter("split")):
        of_split = list(group)
        work += [
            {"samples": of_split[start : start + samples_per_shard]}
            for start in range(0, len(of_split), samples_per_shard)
        ]
    return work


@dataclass(frozen=True)
class _SamplesMaker(ShardMaker):
    root: Path
    size: Size | None

    @property
    def is_light(self) -> bool:
        return True

    def make(self, work: Mapping[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        quarantined: list[dict[str, str]] = []
        for sample in work["samples"]:
            try:
                row, faults = self._row(sample)
            except OSError as error:
                raise CatalogError(
                    f"{error.filename} cannot be read now ({error.strerror}); see to the disk or the network "
                    "and run the same command again, or remove the file to go without its sample"
                ) from error
            quarantined += faults
            if not faults:
                rows.append(row)
        identities: dict[str, list[int]] = {}
        for row in rows:
            identities.setdefault(row["split"], []).append(row["identity"])
        statistics = {
            "identities": {split: sorted(set(ids)) for split, ids in identities.items()},
            "samples": {split: len(ids) for split, ids in identities.items()},
            "cameras": sorted({row["camera_id"] for row in rows}),
            "quarantined": quarantined,
        }
        return pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA), statistics

    def _row(self, sample: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """The row of a sample, and what is wrong with its files."""
        images: dict[str, bytes] = {}
        sizes: dict[str, Size] = {}
        faults: list[dict[str, str]] = []
        for name in (SIDE_BY_SIDE,) if SIDE_BY_SIDE in sample["files"] else MODALITIES:
            file = sample["files"].get(name)
            if file is None:
                other = next(iter(sample["files"].values()))
                faults.append({"file": other, "reason": f"has no {name} image of the same name"})
                continue
            try:
                images[name] = self._read(file)
                height, width = image_size(images[name])
                sizes[name] = height, _width_of_one(width) if name == SIDE_BY_SIDE else width
            except ValueError as error:
                faults.append({"file": file, "reason": str(error)})
        wanted = self.size or next(iter(sizes.values()), None)
        for name, size in sizes.items():
            if wanted is not None and size != wanted:
                times = f"{len(MODALITIES)} times " if name == SIDE_BY_SIDE else ""
                reason = f"is {times}{size[0]}x{size[1]} (height x width), expected {wanted[0]}x{wanted[1]}"
                faults.append({"file": sample["files"][name], "reason": reason})
        faults += self._query_faults(sample, images)
        if faults:
            return {}, faults
        labels = {name: value for name, value in sample.items() if name not in ("files", "query_files")}
        height, width = next(iter(sizes.values()))
        return labels | {
            **{name.lower(): data for name, data in images.items()},
            "height": height,
            "width": width,
            "digest": sample_digest(*images.values()),
        }, []

    def _query_faults(self, sample: Mapping[str, Any], images: Mapping[str, bytes]) -> list[dict[str, str]]:
        """What is wrong with the copies of a gallery sample's files among the queries.

        Only the gallery's bytes are kept, so nobody would notice later that the query is another image.
        """
        copies: Mapping[str, str] = sample["query_files"]
        faults = []
        for name in sample["files"] if copies else ():
            if name not in copies:
                other = next(iter(copies.values()))
                faults.append({"file": other, "reason": f"has no {name} image of the same name"})
                continue
            try:
                data = self._read(copies[name])
                if data != images.get(name, data):
                    image_size(data)
                    raise ValueError(
                        "differs from the gallery's file of the same name, expected a copy of it"
                    )
            except ValueError as error:
                faults.append({"file": copies[name], "reason": str(error)})
        return faults

    def _read(self, file: str) -> bytes:
        path = self.root / file
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                # Reading a pipe would wait for somebody who writes to it.
                raise ValueError("is no regular file but a pipe, a socket or a device, expected JPEG")
            if status.st_size > MAX_FILE_BYTES:
                raise ValueError(f"has {status.st_size} bytes, expected at most {MAX_FILE_BYTES}")
            return path.read_bytes()
        except OSError as error:
            if error.errno not in _FAULTS_OF_FILES:
                raise
            raise ValueError(f"cannot be read ({error.strerror})") from None


def _width_of_one(width: int) -> int:
    """Width of each of the images that stand side by side.

    Raises:
        ValueError: If they cannot be of one width; the message is the reason.
    """
    if width % len(MODALITIES):
        raise ValueError(
            f"is {width} pixels wide, expected {len(MODALITIES)} images of one width side by side"
        )
    return width // len(MODALITIES)


def _summarise(shards: Iterable[Mapping[str, Any]], rejected: Iterable[Rejected]) -> SamplesStatistics:
    samples: Counter[str] = Counter()
    identities: dict[str, set[int]] = {}
    cameras: set[int] = set()
    quarantined = [QuarantinedFile(**asdict(file)) for file in rejected]
    for shard in shards:
        samples.update(shard["samples"])
        cameras.update(shard["cameras"])
        quarantined += [QuarantinedFile(**fault) for fault in shard["quarantined"]]
        for split, ids in shard["identities"].items():
            identities.setdefault(split, set()).update(ids)
    return SamplesStatistics(
        splits={
            split: SplitSize(samples=count, identities=len(identities[split]))
            for split, count in samples.items()
        },
        cameras=tuple(sorted(cameras)),
        quarantined=tuple(sorted(quarantined, key=lambda fault: (fault.file, fault.reason))),
    )
