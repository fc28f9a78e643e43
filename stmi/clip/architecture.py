"""The architecture of a CLIP: the model and the tokenizer that a folder or an open_clip name describes.

Nothing here reads weights or downloads them.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import SimpleTokenizer

from stmi.clip.clip_files import CONFIG_FILE, MERGES_FILE, clip_folder
from stmi.errors import ClipFileError

_MALFORMED = (
    AssertionError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""What open_clip raises for settings that make no model."""
_SHAPE_OPTIONS = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}


def split_name(source: str) -> tuple[str, str]:
    """The names of model and weights in a source `model/pretrained`.

    Raises:
        ClipFileError: open_clip does not have this model or these weights, or the weights were trained with
            another activation than the model has.
    """
    name, _, pretrained = source.partition("/")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        raise ClipFileError(
            f"clip source {source!r} is neither a folder nor an open_clip name as model/pretrained; "
            "give a folder with open_clip_config.json and open_clip_model.safetensors"
        )
    if pretrained not in tags:
        raise ClipFileError(
            f"clip source {source!r}: open_clip has no weights {pretrained!r} of {name}; it has "
            f"{', '.join(tags)}"
        )
    # open_clip only warns where a model has another activation than the weights were trained with.
    quick = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"))
    other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
    is_wrong = quick != bool((open_clip.get_model_config(name) or {}).get("quick_gelu"))
    if is_wrong and other != name and other in open_clip.list_models():
        raise ClipFileError(
            f"clip source {source!r}: these weights were trained with {'QuickGELU' if quick else 'GELU'}, "
            f"which {name} does not have; use {other}/{pretrained}"
        )
    return name, pretrained


def build_clip(source: str | Path) -> open_clip.CLIP:
    """Build the model that a source describes, with fresh weights; downloads nothing.

    Raises:
        ClipFileError: The config is missing, malformed or has an option that `ImageTower` does not support,
            or open_clip does not have the name.
    """
    if (folder := clip_folder(source)) is not None:
        return _build_folder(folder)
    name, _ = split_name(str(source))
    settings = open_clip.get_model_config(name)
    described = f"clip source {str(source)!r}"
    if not settings.keys() <= {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}:
        raise _not_own_towers(described)
    _refuse_unsupported(settings, described)
    return open_clip.CLIP(**settings)


def _build_folder(folder: Path) -> open_clip.CLIP:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ClipFileError(
            f"{path} is missing; a CLIP folder needs it (open_clip's model_cfg): restore it, or name another"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        vision = settings["vision_cfg"]
        size = vision["image_size"]
        vision["image_size"] = tuple(size) if isinstance(size, list) else size
        _refuse_unsupported(settings, str(path))
        return open_clip.CLIP(**settings)
    except ClipFileError:
        raise
    except _MALFORMED as error:
        raise ClipFileError(f"{path}: not a model config of open_clip ({error!r})") from error


def build_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a source's CLIP, texts to token numbers; for some names it is downloaded."""
    if (folder := clip_folder(source)) is None:
        return open_clip.get_tokenizer(split_name(str(source))[0])
    settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    merges = folder / MERGES_FILE
    return SimpleTokenizer(
        **({"bpe_path": str(merges)} if merges.is_file() else {}),
        context_length=settings["text_cfg"].get("context_length", 77),
    )


def _unsupported_options(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Options of open_clip's image tower that `ImageTower` would silently ignore."""
    usual = {field.name: field.default for field in fields(open_clip.CLIPVisionCfg)}
    other = {
        name: value
        for name, value in vision.items()
        if name not in _SHAPE_OPTIONS and value != usual.get(name, value)
    }
    # With a list of layers, open_clip builds a convolutional network.
    return other if isinstance(vision.get("layers", 0), int) else other | {"layers": vision["layers"]}


def _refuse_unsupported(settings: Mapping[str, Any], source: str) -> None:
    """Refuse a model config of open_clip whose towers are not CLIP's own plain transformers.

    Raises:
        ClipFileError: Names the source. open_clip would download the config of a text tower of another kind.
    """
    if "hf_model_name" in settings["text_cfg"]:
        raise _not_own_towers(source)
    if other := _unsupported_options(settings["vision_cfg"]):
        options = ", ".join(f"{name}={value!r}" for name, value in other.items())
        raise ClipFileError(
            f"{source}: the image tower has {options}; a plain vision transformer is needed, such as that of "
            "ViT-B-16-quickgelu/openai"
        )


def _not_own_towers(source: str) -> ClipFileError:
    return ClipFileError(
        f"{source} has towers that are not CLIP's own; use a plain vision transformer such as "
        "ViT-B-16-quickgelu/openai"
    )


def write_merges(path: Path, count: int) -> int:
    """Write the `count` most frequent byte-pair merges of CLIP's tokenizer to `path`.

    With these merges a tokenizer splits rare words into more pieces and has `512 + count + 2` token numbers
    instead of 49,408, which makes the text tower of a small CLIP small.

    Returns:
        The vocabulary size.
    """
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as source:
        lines = [next(source) for _ in range(count + 1)]
    # A fixed modification time: the same merges give the same bytes.
    path.write_bytes(gzip.compress("".join(lines).rstrip("\n").encode(), mtime=0))
    return 512 + count + 2
