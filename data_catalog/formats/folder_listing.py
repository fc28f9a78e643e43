"""What the layouts share: finding the root, listing folders, and reading file names."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_catalog.errors import CatalogError
from data_catalog.formats.source import Listing, Rejected, SourceSample

_ENDING = ".jpg"
_CONVERT = "convert it to JPEG of quality 95 or more"
_OTHER_ENDINGS = {
    **dict.fromkeys((".jpeg", ".jpe", ".jfif"), "rename it"),
    **dict.fromkeys((".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".heic", ".avif"), _CONVERT),
}
"""Endings of images that are not read, each with what to do."""
_LEFT_OUT = {
    "-1": "has identity -1, which marks junk; it is left out",
    "0": "has identity 0, which marks background without an object; it is left out",
}


@dataclass(frozen=True)
class NamePattern:
    """How a layout names its images.

    Attributes:
        pattern: Matches a name without its ending; its group `identity` is the identity, or -1.
        expected: Such a name in words, for messages.
    """

    pattern: re.Pattern[str]
    expected: str


@dataclass(frozen=True)
class NamedImage:
    """An image with a name of the expected form.

    Attributes:
        name: The file's name without its ending.
        path: Path below the root, with forward slashes.
        parts: The groups of the pattern.
    """

    name: str
    path: str
    parts: Mapping[str, str]

    @property
    def identity(self) -> int:
        """The identity in the name."""
        return int(self.parts["identity"])


Images = Mapping[str, NamedImage]
"""The files of a sample by modality, or one under SIDE_BY_SIDE."""


def find_root(source: Path, folder: str, must_hold: str) -> Path:
    """The root of a data set: `source` itself or the folder of the published name in it.

    Args:
        source: What the user gave.
        folder: Name of the root as published.
        must_hold: Path of a folder below the root, which identifies it.

    Raises:
        CatalogError: If neither contains it.
    """
    for candidate in (source, source / folder):
        if (candidate / must_hold).is_dir():
            return candidate
    raise CatalogError(
        f"source {source} holds no folder {must_hold}; give the folder {folder} or the one it lies in"
    )


def list_entries(root: Path, folder: str, layout: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder below the root, each sorted, without hidden ones.

    A link to a folder counts as a folder. A broken or circular link counts as a file, so that reading it says
    what is wrong.

    Raises:
        CatalogError: If the folder is missing or cannot be read; `layout` says what is needed.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise CatalogError(f"folder {root / folder} cannot be read ({error.strerror}); {layout}") from error
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_names(
    folder: str, files: Iterable[str], pattern: NamePattern
) -> tuple[dict[str, NamedImage], list[Rejected]]:
    """Images of a folder by name, and the files that are left out with the reasons.

    The ending is `.jpg` in upper or lower case. Of two files whose names differ only in the case of the
    ending, the one with the published ending is used.

    Args:
        folder: Path below the root.
        files: Names of the files in it.
        pattern: How they should be named.
    """
    found: dict[str, NamedImage] = {}
    rejected: list[Rejected] = []
    for file in sorted(files, key=lambda file: (not file.endswith(_ENDING), file)):
        name, ending = Path(file).stem, Path(file).suffix
        match = pattern.pattern.fullmatch(name)
        path = f"{folder}/{file}"
        if match is not None and ending.lower() in _OTHER_ENDINGS:
            reason = f"ends in {ending}, expected {_ENDING}: {_OTHER_ENDINGS[ending.lower()]}"
        elif match is None or ending.lower() != _ENDING:
            reason = f"is not {pattern.expected}"
        elif name in found:
            reason = f"has the same name as {found[name].path}; it is left out, so keep one of the two"
        elif (left_out := _LEFT_OUT.get(str(int(match["identity"])))) is not None:
            reason = left_out
        else:
            found[name] = NamedImage(name, path, match.groupdict())
            continue
        rejected.append(leave_out(path, reason))
    return found, rejected


def find_unread(listing: Listing) -> dict[str, str]:
    """By the id of a sample, which files of its name were left out for their endings, to follow a message.

    Only files beside the sample's folders: those in them are not what it lacks.
    """
    unread: dict[tuple[Path, str], list[Rejected]] = {}
    for rejected in listing.rejected:
        path = Path(rejected.file)
        if path.suffix.lower() in _OTHER_ENDINGS:
            unread.setdefault((path.parent.parent, path.stem), []).append(rejected)
    found = {}
    for sample in listing.samples if unread else ():
        paths = [Path(file) for file in (*sample.files.values(), *sample.query_files.values())]
        folders = {path.parent for path in paths}
        named = dict.fromkeys((path.parent.parent, path.stem) for path in paths)
        beside = [
            one for name in named for one in unread.get(name, ()) if Path(one.file).parent not in folders
        ]
        if beside:
            found[sample.sample_id] = ": " + "; ".join(f"{one.file} {one.reason}" for one in beside)
    return found


def leave_out(path: str, reason: str) -> Rejected:
    """A file that is left out; bytes of its path that are not UTF-8 are escaped."""
    return Rejected(file=path.encode(errors="backslashreplace").decode(), reason=reason)


def refuse_empty(source: Path, folder: str, holds: int, rejected: Iterable[Rejected], needed: str) -> None:
    """Make sure that a folder holds images.

    Raises:
        CatalogError: If it does not; names the first file that was left out, and the reason.
    """
    if holds:
        return
    first = next((fault for fault in rejected if fault.file.startswith(f"{folder}/")), None)
    why = f" (first of the files: {first.file} {first.reason})" if first else ""
    raise CatalogError(f"source {source}: folder {folder} holds no image{why}; put the {needed} there")


def list_with_queries(
    source: Path,
    root: Path,
    folders: tuple[str, str, str],
    read: Callable[[str], tuple[Mapping[str, Images], list[Rejected]]],
    find_view: Callable[[NamedImage], tuple[int, int]],
) -> Listing:
    """Samples of a layout that has a folder of queries, sorted by id.

    Args:
        source: What the user gave, for messages.
        root: The root of the data set.
        folders: Paths of the training images, the queries and the gallery below the root.
        read: Reads such a folder: images by name, and the files that are left out.
        find_view: Camera and scene of an image.

    Raises:
        CatalogError: If a folder holds no image.
    """
    found: list[Mapping[str, Images]] = []
    rejected: list[Rejected] = []
    for folder, needed in zip(folders, ("training images", "queries", "gallery"), strict=True):
        listed, faults = read(folder)
        refuse_empty(source, folder, len(listed), faults, needed)
        found.append(listed)
        rejected += faults

    def make_sample(split: str, images: Images, query: Images, is_gallery: bool) -> SourceSample:
        image = next(iter(images.values()))
        camera_id, scene_id = find_view(image)
        return SourceSample(
            sample_id=f"{split}/{image.name}",
            split=split,
            identity=image.identity,
            camera_id=camera_id,
            scene_id=scene_id,
            is_query=bool(query),
            is_gallery=is_gallery,
            files={modality: image.path for modality, image in images.items()},
            query_files={modality: image.path for modality, image in query.items()} if is_gallery else {},
        )

    train, queries, gallery = found
    samples = [make_sample("train", images, {}, False) for images in train.values()]
    # The files of a sample in both folders are taken from the gallery.
    for name, images in {**queries, **gallery}.items():
        samples.append(make_sample("test", images, queries.get(name, {}), name in gallery))
    samples.sort(key=lambda sample: sample.sample_id)
    return Listing(root, tuple(samples), tuple(rejected))
