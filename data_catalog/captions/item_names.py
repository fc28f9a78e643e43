"""How files of captions and of predictions name a sample."""

from pathlib import PurePosixPath

_IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif"),
    *(".png", ".apng", ".bmp", ".tif", ".tiff", ".webp"),
)


def file_stem(item: str) -> str:
    """The name of an item's file, without folders (of any system) and without the ending of an image."""
    name = PurePosixPath(item.strip().replace("\\", "/")).name
    ending = PurePosixPath(name).suffix
    return name.removesuffix(ending) if ending.lower() in _IMAGE_ENDINGS else name
