"""Converts a CLIP's folder of another layout, or with other weights files, to that which `load_clip` reads.

Two layouts: open_clip's, with `open_clip_config.json` and weights as `.bin`, `.pt` or safetensors; and that
of Hugging Face's `CLIPModel`, with `config.json`, whose weights have other names and come in other parts.
Nothing in a file is executed.
"""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmi.checksums import file_digest
from stmi.clip import clip_files
from stmi.clip.clip_writing import write_clip
from stmi.clip.weights import read_weights
from stmi.errors import ClipFileError

OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
)
HUGGING_FACE_CONFIG = "config.json"
HUGGING_FACE_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pt")
HUGGING_FACE_MERGES = "merges.txt"
CLIP_VOCABULARY = 49408
_TEXT = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "vocab_size": CLIP_VOCABULARY,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_VISION = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What Hugging Face's config leaves out is this."""
_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "visual_projection.weight": "visual.proj",
    "logit_scale": "logit_scale",
}
"""Start of a name there, to the start of open_clip's."""
_IN_LAYER = {
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_PARTS = ("q", "k", "v")
_PROJECTION = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")
_NOT_WEIGHTS = re.compile(r"(text|vision)_model\.embeddings\.position_ids")


def convert_folder(folder: Path, out: Path) -> dict[str, Any]:
    """Write the CLIP folder of a folder of another layout, with float32 weights; all of it or nothing.

    Args:
        folder: open_clip's layout or Hugging Face's.
        out: The new folder; it must not exist.

    Returns:
        What `openai_archive.convert` gives; `archive_sha256` is that of the file of weights.

    Raises:
        ClipFileError: The layout is neither, a file cannot be read, the towers are not those of a plain CLIP,
            or weights are missing, unknown or of another shape.
        OSError: The folder cannot be written.
    """
    clip_files.check_new(out)
    read: Callable[[Path, Path], tuple[dict[str, Any], dict[str, Tensor], bytes | None]]
    if (folder / clip_files.CONFIG_FILE).is_file():
        read, path = _read_open_clip, _find_weights(folder, OPEN_CLIP_WEIGHTS)
    elif (folder / HUGGING_FACE_CONFIG).is_file():
        read, path = _read_hugging_face, _find_weights(folder, HUGGING_FACE_WEIGHTS)
    else:
        raise ClipFileError(
            f"{folder} has neither {clip_files.CONFIG_FILE} (open_clip) nor {HUGGING_FACE_CONFIG} (Hugging "
            "Face); name the folder of a CLIP"
        )
    config, weights, merges = read(folder, path)
    written = write_clip(
        out, config, {name: value.contiguous() for name, value in weights.items()}, str(folder), merges
    )
    return {"archive_sha256": file_digest(path), "published_as": None, **written}


def _find_weights(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ClipFileError(f"{folder} has no file of weights; expected one of {', '.join(names)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ClipFileError(f"{path} cannot be read as JSON ({error}); restore the file") from None
    if not isinstance(content, dict):
        raise ClipFileError(f"{path} is a {type(content).__name__}; expected a JSON object")
    return content


def _read_open_clip(folder: Path, path: Path) -> tuple[dict[str, Any], dict[str, Tensor], bytes | None]:
    described = folder / clip_files.CONFIG_FILE
    config = _read_json(described).get("model_cfg")
    if not isinstance(config, dict):
        raise ClipFileError(f"{described} has no model_cfg; expected that of open_clip")
    weights = read_weights(path)
    if "logit_scale" in weights and weights["logit_scale"].numel() == 1:
        weights["logit_scale"] = weights["logit_scale"].reshape(())
    merges = folder / clip_files.MERGES_FILE
    return config, weights, gzip.decompress(merges.read_bytes()) if merges.is_file() else None


def _read_hugging_face(folder: Path, path: Path) -> tuple[dict[str, Any], dict[str, Tensor], bytes | None]:
    config = _hugging_face_config(folder / HUGGING_FACE_CONFIG)
    return (
        config,
        _open_clip_weights(read_weights(path), path),
        _merges(folder, config["text_cfg"]["vocab_size"]),
    )


def _hugging_face_config(path: Path) -> dict[str, Any]:
    """The `model_cfg` of open_clip that a Hugging Face config describes."""
    given = _read_json(path)
    if given.get("model_type") != "clip":
        raise ClipFileError(f"{path}: model_type is {given.get('model_type')!r}, expected 'clip'")
    text, vision = (
        {name: (given.get(part) or {}).get(name, usual) for name, usual in defaults.items()}
        for part, defaults in (("text_config", _TEXT), ("vision_config", _VISION))
    )
    activations = {text["hidden_act"], vision["hidden_act"]}
    for name, tower in (("text_config", text), ("vision_config", vision)):
        if len(activations) > 1 or tower["hidden_act"] not in ("quick_gelu", "gelu"):
            raise ClipFileError(
                f"{path}: {name}.hidden_act is {tower['hidden_act']!r}, expected one of both towers"
            )
        if tower["layer_norm_eps"] != _TEXT["layer_norm_eps"]:
            raise ClipFileError(f"{path}: {name}.layer_norm_eps is {tower['layer_norm_eps']}, expected 1e-05")
    try:
        return {
            "embed_dim": int(given.get("projection_dim", 512)),
            "quick_gelu": activations == {"quick_gelu"},
            "vision_cfg": {
                "image_size": [vision["image_size"]] * 2,
                "layers": vision["num_hidden_layers"],
                "width": vision["hidden_size"],
                "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
                "patch_size": vision["patch_size"],
            },
            "text_cfg": {
                "context_length": text["max_position_embeddings"],
                "vocab_size": text["vocab_size"],
                "width": text["hidden_size"],
                "heads": text["num_attention_heads"],
                "layers": text["num_hidden_layers"],
                "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            },
        }
    except (TypeError, ZeroDivisionError) as error:
        raise ClipFileError(f"{path}: a size is no number ({error}); restore the file") from None


def _open_clip_weights(given: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights by open_clip's names; queries, keys and values of a layer become one weight."""
    weights: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in given.items():
        if _NOT_WEIGHTS.fullmatch(name):
            continue
        start = next((start for start in _NAMES if name.startswith(start)), None)
        if start is None:
            raise ClipFileError(f"{path}: unknown weight {name}; expected those of Hugging Face's CLIPModel")
        rest = name.removeprefix(start)
        if not start.endswith("layers."):
            # Linear layers there, plain matrices in open_clip.
            weights[_NAMES[start] + rest] = value.T if start.endswith("projection.weight") else value
            continue
        layer, _, inner = rest.partition(".")
        if match := _PROJECTION.fullmatch(inner):
            parts.setdefault(f"{_NAMES[start]}{layer}.attn.in_proj_{match[2]}", {})[match[1]] = value
            continue
        for theirs, ours in _IN_LAYER.items():
            inner = inner.replace(theirs, ours)
        weights[f"{_NAMES[start]}{layer}.{inner}"] = value
    for name, of_part in parts.items():
        if missing := [part for part in _PARTS if part not in of_part]:
            raise ClipFileError(f"{path}: {name} lacks the projections {', '.join(missing)} of its layer")
        weights[name] = torch.cat([of_part[part] for part in _PARTS])
    return weights


def _merges(folder: Path, vocabulary: int) -> bytes | None:
    """The tokenizer's merges, where they are not CLIP's own."""
    if vocabulary == CLIP_VOCABULARY:
        return None
    path = folder / HUGGING_FACE_MERGES
    if not path.is_file():
        raise ClipFileError(f"{path} is missing: a vocabulary of {vocabulary} tokens is not CLIP's own")
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    # 256 bytes, the same at the end of a word, the merges below a line of their version, two marks of a text.
    if 512 + len(lines) - 1 + 2 != vocabulary:
        raise ClipFileError(
            f"{path} has {len(lines) - 1} merges, which make {512 + len(lines) + 1} tokens; the config says "
            f"{vocabulary}"
        )
    return "\n".join(lines).encode()
