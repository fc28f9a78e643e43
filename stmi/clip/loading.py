"""A pretrained CLIP from a folder, or by its name in open_clip.

A folder with `open_clip_config.json` and `open_clip_model.safetensors` is read with safetensors: a file of
weights is never executed.
"""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import constants
from torch import Tensor

from stmi.checksums import file_digest
from stmi.clip import hub
from stmi.clip.architecture import build_clip, build_tokenizer, split_name
from stmi.clip.clip_files import (
    CONFIG_FILE,
    DIGEST_FILE,
    MERGES_FILE,
    WEIGHTS_FILE,
    clip_folder,
)
from stmi.clip.weights import load_strictly, read_weights
from stmi.errors import ClipFileError


@dataclass(frozen=True)
class LoadedClip:
    """A pretrained CLIP.

    Attributes:
        model: open_clip's model, in evaluation mode, gradients off.
        tokenizer: Text to token numbers.
        name: The source that it was loaded from.
        digest: Hex SHA-256 of everything that decides the output of the towers: config, vocabulary and
            weights. The same weights have one digest by name and another from a folder.
    """

    model: open_clip.CLIP
    tokenizer: Any
    name: str
    digest: str

    @property
    def embed_dim(self) -> int:
        """Width of the shared space of images and texts."""
        return int(self.model.visual.proj.shape[1])

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token numbers of texts, cut at the context length, int64 `(batch, context)`."""
        return self.tokenizer(texts)

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features T before normalisation, float32 `(batch, embed_dim)`.

        The feature is the end-of-text token after the projection.
        """
        return self.model.encode_text(tokens).float()


def load_clip(source: str | Path) -> LoadedClip:
    """Load a CLIP from a folder, or by open_clip's `model/pretrained` name.

    Args:
        source: A folder, the file of weights in it, or a name.

    Raises:
        ClipFileError: A file is missing, the config is malformed or has an option that `ImageTower` does not
            support, or weights are missing, unknown or misshapen. Nothing is loaded in part or resized.
    """
    if (folder := clip_folder(source)) is not None:
        return _load_folder(folder)
    model = build_clip(source)
    name, pretrained = split_name(str(source))
    path = _download(name, pretrained)
    weights = read_weights(path)
    if "logit_scale" in weights and weights["logit_scale"].numel() == 1:
        # A scalar in some files, an array of one number in others.
        weights["logit_scale"] = weights["logit_scale"].reshape(model.logit_scale.shape)
    load_strictly(model, weights, f"clip source {str(source)!r}: {path}")
    digest = hashlib.sha256(json.dumps([name, open_clip.get_model_config(name)], sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    return LoadedClip(_frozen(model), build_tokenizer(source), str(source), digest.hexdigest())


def untrained_clip(source: str | Path) -> LoadedClip:
    """A CLIP with random weights, for a model that gets its own; reads no weights and downloads nothing.

    Returns:
        The towers, without digest and tokenizer.

    Raises:
        ClipFileError: The architecture is unknown, as in `stmi.clip.architecture.build_clip`.
    """
    return LoadedClip(_frozen(build_clip(source)), None, str(source), digest="")


def _download(name: str, pretrained: str) -> Path:
    published = open_clip.get_pretrained_cfg(name, pretrained)
    is_on_disk, is_on_hub = "file" in published, "hf_hub" in published
    fault = hub.why_unreachable() if is_on_hub and not is_on_disk else None
    try:
        with nullcontext() if fault is None else hub.cache_alone():
            return Path(open_clip.download_pretrained(published))
    except (OSError, RuntimeError, ValueError) as error:
        reason = (
            f"cannot be fetched ({error})"
            if fault is None
            else f"are not in the cache ({constants.HF_HUB_CACHE}) and cannot be downloaded ({fault})"
        )
        raise ClipFileError(
            f"clip source '{name}/{pretrained}': its weights {reason}; name a folder that has them with "
            "--set model.clip.source=DIR (--clip DIR of `data_catalog text-features`); "
            "experiments/convert_clip.py makes one"
        ) from None


def _load_folder(folder: Path) -> LoadedClip:
    model = build_clip(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ClipFileError(
            f"{path} is missing; a CLIP folder needs it (weights as safetensors): restore it, or name another"
        )
    digest = file_digest(path)
    expected = folder / DIGEST_FILE
    if expected.is_file() and expected.read_text().split()[:1] != [digest]:
        raise ClipFileError(f"{path} has SHA-256 {digest}, not the one in {expected}; restore the file")
    weights = read_weights(path)
    load_strictly(model, weights, path)
    return LoadedClip(_frozen(model), build_tokenizer(folder), str(folder), _folder_digest(folder, digest))


def _folder_digest(folder: Path, weights: str) -> str:
    """Digest of everything that decides the output of the towers: config, merges and weights."""
    config = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]
    merges = folder / MERGES_FILE
    parts = {
        "model_cfg": config,
        "merges": file_digest(merges) if merges.is_file() else None,
        "weights": weights,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _frozen(model: open_clip.CLIP) -> open_clip.CLIP:
    return model.eval().requires_grad_(False)
