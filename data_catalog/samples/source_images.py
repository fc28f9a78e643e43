"""Image files of a source folder: read, checked, and measured."""

import errno
import io
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from data_catalog.errors import CatalogError
from data_catalog.formats import SIDE_BY_SIDE, Listing
from data_catalog.storage import filesystems
from stmi.images import orientation, refuse_frames, upright_size
from stmi.modality import MODALITIES, Modality

Size = tuple[int, int]
"""Height and width, in pixels."""

MAX_PIXELS = 64 * 2**20
MAX_FILE_BYTES = 64 * 2**20
_SIZE_PROBES = 512
_FILE_FAULTS = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""Errors that stay until somebody corrects the file; others come from the disk or the network."""
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
_READABLE = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ValueError: If the file cannot be used; the message is the reason, to follow the file's name.
        OSError: If the disk or the network fails.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Reading a pipe would wait for a writer.
            raise ValueError("is no regular file but a pipe, a socket or a device, expected JPEG")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"has {status.st_size} bytes, expected at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _FILE_FAULTS:
            raise
        raise ValueError(f"cannot be read ({error.strerror})") from None


def read_source(root: Path, file: str) -> bytes:
    """The bytes of a file of a listing: a path below its root, or a URI.

    Raises:
        ValueError: If the file cannot be used; the message is the reason, to follow the file's name.
        OSError: If the disk, the network or the storage of a URI fails.
    """
    if not is_uri(file):
        return read_file(root / file)
    if (facts := uri_facts(file)) is None:
        raise ValueError("cannot be read (there is no such object)")
    if facts[0] > MAX_FILE_BYTES:
        raise ValueError(f"has {facts[0]} bytes, expected at most {MAX_FILE_BYTES}")
    with _failing_storage(file):
        return filesystems.read_bytes(*filesystems.open_root(file))


def is_uri(file: str) -> bool:
    """Whether a file of a listing is a URI, and no path below the root."""
    return "://" in file


def uri_facts(uri: str) -> tuple[int, int] | None:
    """Size (bytes) and time of change (nanoseconds) of an object; None where there is none.

    Raises:
        OSError: If its storage fails.
    """
    with _failing_storage(uri):
        return filesystems.file_facts(*filesystems.open_root(uri))


@contextmanager
def _failing_storage(uri: str) -> Iterator[None]:
    # A CatalogError is a ValueError, and those are faults of a file.
    try:
        yield
    except CatalogError as error:
        raise OSError(errno.EIO, str(error), uri) from None


@contextmanager
def failing_disk_ends_ingest() -> Iterator[None]:
    """Turn an OSError of `read_file` into an error that names the file.

    Raises:
        CatalogError: If the disk or the network fails.
    """
    try:
        yield
    except OSError as error:
        raise CatalogError(
            f"{error.filename} cannot be read now ({error.strerror}); see to the disk or the network and run "
            "the same command again, or remove the file to go without its sample"
        ) from error


@contextmanager
def _opened(file: io.BytesIO | Path) -> Iterator[Image.Image]:
    """An image; one with very many pixels raises a DecompressionBombWarning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=_READABLE) as image:
            yield image


@contextmanager
def decoded(data: bytes, expected: str = "JPEG") -> Iterator[Image.Image]:
    """The one image of a file, to be loaded within this context.

    Args:
        data: The file.
        expected: Which types of files can be used, for messages.

    Raises:
        ValueError: If the file holds no image or several, or a damaged or very large one; the message is the
            reason, to follow the file's name.
    """
    if not data:
        raise ValueError("is empty (zero bytes)")
    try:
        with _opened(io.BytesIO(data)) as image:
            refuse_frames(image)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"has {image.width * image.height} pixels, expected at most {MAX_PIXELS}")
            yield image
    except _BOMBS:
        raise ValueError(f"decodes to far more than {MAX_PIXELS} pixels, expected at most that") from None
    except UnidentifiedImageError:
        raise ValueError(f"is not an image, expected {expected}") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot be decoded ({error})") from None


def image_size(data: bytes) -> Size:
    """Height and width of the colour JPEG in a file, once it is upright.

    Raises:
        ValueError: If the file holds no such image, or a damaged one; the message is the reason, to follow
            the file's name.
    """
    with decoded(data) as image:
        if image.format != "JPEG":
            raise ValueError(f"is a {image.format} file, expected JPEG")
        if image.mode != "RGB":
            kind = {"L": "greyscale", "CMYK": "CMYK"}.get(image.mode, f"of mode {image.mode}")
            raise ValueError(f"is {kind}, expected a colour image (three channels)")
        image.load()
        return upright_size(image)


def describe_turn(data: bytes) -> str:
    """How the EXIF orientation of an image turns it, to follow its size in a message; "" if it does not."""
    with _opened(io.BytesIO(data)) as image:
        turn = orientation(image)
    return "" if turn == 1 else f", turned by its EXIF orientation {turn}"


def width_side_by_side(width: int) -> int:
    """Width of each of the images that stand side by side in a file.

    Raises:
        ValueError: If they cannot have the same width; the message is the reason.
    """
    if width % len(MODALITIES):
        raise ValueError(
            f"is {width} pixels wide, expected {len(MODALITIES)} images of one width side by side"
        )
    return width // len(MODALITIES)


def most_common_size(listing: Listing) -> Size | Literal["any"]:
    """The size of at least half of the RGB images, among some 512 spread over the data set."""
    files = [
        (file, 1 if modality == Modality.RGB else len(MODALITIES))
        for sample in listing.samples
        for modality, file in sample.files.items()
        if modality in (Modality.RGB, SIDE_BY_SIDE)
    ]
    sizes: Counter[Size] = Counter()
    for file, images in files[:: max(1, len(files) // _SIZE_PROBES)]:
        source = listing.root / file
        if not is_uri(file) and not source.is_file():
            continue
        try:
            with _opened(io.BytesIO(read_source(source, file)) if is_uri(file) else source) as image:
                height, width = upright_size(image)
                sizes[height, width // images] += 1
        except (OSError, SyntaxError, ValueError, *_BOMBS):
            continue
    size, count = max(sizes.items(), key=lambda item: (item[1], item[0]), default=(None, 0))
    return "any" if size is None or 2 * count < sizes.total() else size
