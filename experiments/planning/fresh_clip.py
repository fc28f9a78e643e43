"""A CLIP with fresh weights: its architecture, where its own weights are not needed or not at hand."""

from pathlib import Path
from typing import Any

import open_clip

from stmi.clip import ClipFileError, LoadedClip, build_clip, split_name


def fresh_clip(source: str) -> LoadedClip:
    """The towers that a source describes, with random weights; reads no weights and downloads nothing.

    Args:
        source: A folder with open_clip_config.json, or an open_clip name as model/pretrained.

    Returns:
        The towers without a digest, and without a tokenizer where the source is a name.

    Raises:
        ClipFileError: The config is missing or malformed, the name unknown, or its towers are not CLIP's own.
    """
    if Path(source).is_dir():
        model, tokenizer = build_clip(Path(source))
    else:
        name, _ = split_name(source)
        settings = open_clip.get_model_config(name)
        if not _is_plain(settings):
            raise ClipFileError(
                f"clip source {source!r} has towers that are not CLIP's own; use a plain vision transformer "
                "such as ViT-B-16-quickgelu/openai"
            )
        model, tokenizer = open_clip.CLIP(**settings), None
    return LoadedClip(model.eval().requires_grad_(False), tokenizer, source, digest="")


def _is_plain(settings: dict[str, Any]) -> bool:
    """Whether both towers are open_clip's own transformers; building others may download their parts."""
    own = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    return (
        settings.keys() <= own
        and isinstance(settings["vision_cfg"].get("layers"), int)
        and "timm_model_name" not in settings["vision_cfg"]
        and "hf_model_name" not in settings["text_cfg"]
    )
