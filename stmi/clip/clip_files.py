"""The files of a CLIP's folder, and where a source finds it; imports nothing that takes time."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from stmi.checksums import SUMS_FILE
from stmi.errors import ClipFileError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
MERGES_FILE = "bpe_merges.txt.gz"
DIGEST_FILE = SUMS_FILE
"""Optional: the digest that the weights file must have, in the form of `sha256sum`."""
USUAL_PATCH = 16
"""Patch of ViT-B/16, and what open_clip takes where a config does not say it."""
PROJECT = Path(__file__).resolve().parents[2]
"""The folder that holds `stmi`, with the demo's CLIP in it."""


def clip_folder(source: str | Path) -> Path | None:
    """The folder that a source names, itself or by the file of weights in it; None for an open_clip name."""
    path = Path(source).expanduser()
    if path.is_file() and path.name == WEIGHTS_FILE:
        return path.parent
    return path if path.is_dir() else None


def find_clip(source: str) -> str:
    """The CLIP that a setting names: a folder, relative to here or to the project, or an open_clip name."""
    for path in (Path(source), PROJECT / source):
        if (folder := clip_folder(path)) is not None:
            return str(folder.resolve())
    return source


def check_new(out: Path) -> None:
    """Refuse to convert to a folder that exists.

    Raises:
        ClipFileError: Names it.
    """
    if out.exists():
        raise ClipFileError(f"{out} exists; name another folder, or remove it to convert again")


def patch_size(source: str | Path) -> int:
    """Side of a patch of a CLIP's image tower, in pixels; the usual one if the source is not there now.

    Raises:
        ClipFileError: Its config is damaged.
    """
    vision: dict[str, Any] = {}
    if (folder := clip_folder(source)) is not None:
        path = folder / CONFIG_FILE
        try:
            with suppress(FileNotFoundError):
                vision = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]["vision_cfg"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClipFileError(f"{path} is no config of a CLIP ({error!r}); restore it") from None
    else:
        import open_clip  # noqa: PLC0415

        vision = (open_clip.get_model_config(str(source).partition("/")[0]) or {}).get("vision_cfg", {})
    return int(vision.get("patch_size", USUAL_PATCH))


def check_conversion(archive: Path, out: Path) -> None:
    """Refuse to convert an archive that cannot be read, or to a folder that exists.

    Raises:
        ClipFileError: Names the path.
    """
    check_new(out)
    try:
        archive.open("rb").close()
    except OSError as error:
        raise ClipFileError(
            f"archive {archive} cannot be read ({error.strerror}); name the file that OpenAI serves for a "
            "model, for example ViT-B-16.pt"
        ) from error
