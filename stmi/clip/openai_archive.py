"""Converts a CLIP archive of OpenAI (`ViT-B-16.pt`, `ViT-L-14.pt`, ...) to the folder that `load_clip` reads.

The archive is TorchScript: code with weights. Its SHA-256 is checked before anything in it is read, and then
only its tensors are read. Nothing in it is executed.
"""

import hashlib
import re
from io import BufferedReader
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from stmi.clip import clip_files
from stmi.clip.clip_writing import write_clip
from stmi.clip.torchscript_weights import TorchScriptError, read_tensors
from stmi.errors import ClipFileError

_DIGEST = re.compile(r"[0-9a-f]{64}")
HEAD_WIDTH = 64
"""Width of a head in every CLIP that OpenAI published; the number of heads does not follow from any shape."""
_NOT_WEIGHTS = re.compile(r"(.*\.)?(input_resolution|context_length|vocab_size|attn_mask)$")
"""Tensors of the archive that are not weights; open_clip has them in its config and code."""


def published_digests() -> dict[str, str]:
    """SHA-256 in hex of each archive that OpenAI published, to the name of the model.

    The digest is a part of the archive's URL, and open_clip has the URLs.
    """
    digests: dict[str, str] = {}
    for name in open_clip.list_openai_models():
        url = open_clip.get_pretrained_url(name, "openai")
        for part in url.split("/"):
            if _DIGEST.fullmatch(part):
                # An archive has two names, the second with "-quickgelu".
                digests.setdefault(part, name)
    return digests


def convert(archive: Path, out: Path, sha256: str | None = None) -> dict[str, Any]:
    """Write the CLIP folder of an archive, with float32 weights; all of it or nothing.

    Args:
        archive: The file as OpenAI serves it.
        out: The new folder; it must not exist.
        sha256: The digest that the file must have; None for one of those that OpenAI published.

    Returns:
        `folder`, `archive_sha256`, `published_as` (None where OpenAI did not publish it), `digest` (that of
        `LoadedClip`), `parameters`, and `model_cfg`.

    Raises:
        ClipFileError: The file cannot be read, has another digest, is not an archive of a CLIP with a vision
            transformer, or has weights that are missing, unknown or of another shape.
        OSError: The folder cannot be written.
    """
    clip_files.check_conversion(archive, out)
    with archive.open("rb") as file:
        digest = _check_digest(archive, file, sha256)
        weights = _weights(archive, file)
    config = model_config(weights, archive)
    written = write_clip(out, config, weights, source=str(archive))
    return {"archive_sha256": digest, "published_as": published_digests().get(digest), **written}


def model_config(weights: dict[str, Tensor], archive: Path | str) -> dict[str, Any]:
    """The model config of open_clip that fits the weights of an archive.

    Args:
        weights: By OpenAI's names, which are open_clip's.
        archive: For the error message.

    Raises:
        ClipFileError: A weight that determines a size is missing or has another number of dimensions.
    """
    dimensions = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "positional_embedding": 2,
        "token_embedding.weight": 2,
    }
    lacking = [
        name for name, count in dimensions.items() if name not in weights or weights[name].ndim != count
    ]
    if lacking:
        raise ClipFileError(
            f"{archive}: no {', '.join(lacking)} as a vision transformer's CLIP has; "
            "give ViT-B-32, ViT-B-16, ViT-L-14 or ViT-L-14-336px"
        )
    width, _, _, patch = weights["visual.conv1.weight"].shape
    rows = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    context, text_width = weights["positional_embedding"].shape
    for name, size in (("visual.conv1.weight", width), ("positional_embedding", text_width)):
        if size % HEAD_WIDTH or not size:
            raise ClipFileError(
                f"{archive}: {name} has width {size}, expected a multiple of {HEAD_WIDTH}, a head's width"
            )
    return {
        "embed_dim": weights["visual.proj"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": [rows * patch, rows * patch],
            "layers": _layers(weights, "visual.transformer."),
            "width": width,
            "head_width": HEAD_WIDTH,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": context,
            "vocab_size": len(weights["token_embedding.weight"]),
            "width": text_width,
            "heads": text_width // HEAD_WIDTH,
            "layers": _layers(weights, "transformer."),
        },
    }


def _layers(weights: dict[str, Tensor], tower: str) -> int:
    pattern = re.compile(re.escape(tower) + r"resblocks\.\d+\.ln_1\.weight")
    return sum(bool(pattern.fullmatch(name)) for name in weights)


def _check_digest(archive: Path, file: BufferedReader, sha256: str | None) -> str:
    """The digest of a file, if it is an expected one; the file is at its start again afterwards."""
    if sha256 is not None and not _DIGEST.fullmatch(sha256.lower()):
        raise ClipFileError(f"sha256={sha256!r} is not a SHA-256 in hex; give its 64 digits")
    published = published_digests()
    wanted = set(published) if sha256 is None else {sha256.lower()}
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    if digest not in wanted:
        expected = sha256 or f"one of OpenAI's ({', '.join(published.values())})"
        raise ClipFileError(
            f"{archive} has SHA-256 {digest}, expected {expected}; nothing in it was read. "
            "Download it again, or state its digest with --sha256 if you trust where it came from"
        )
    return digest


def _weights(archive: Path, file: BufferedReader) -> dict[str, Tensor]:
    """The weights of the archive, float32, by OpenAI's names, which are open_clip's."""
    try:
        tensors = read_tensors(file)
    except TorchScriptError as error:
        raise ClipFileError(f"{archive}: {error}; give a .pt file as OpenAI serves it") from error
    return {
        # A copy, because tensors of the archive may share memory, which safetensors refuses.
        name: value.to(torch.float32, copy=True).contiguous()
        for name, value in tensors.items()
        if not _NOT_WEIGHTS.match(name)
    }
