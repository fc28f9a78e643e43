"""A pretrained CLIP from a folder, or by the name that open_clip has for it.

A folder with `open_clip_config.json` and `open_clip_model.safetensors` is read with safetensors: a
weights file is never executed.
"""

import gzip
import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
MERGES_FILE = "bpe_merges.txt.gz"
DIGEST_FILE = "SHA256SUMS"
"""Optional: the digest that the weights file must have, in the form of `sha256sum`."""


class ClipFileError(ValueError):
    """A CLIP folder or name that cannot be used, with the file and what is wrong with it."""


@dataclass(frozen=True)
class LoadedClip:
    """A pretrained CLIP.

    Attributes:
        model: open_clip's model, in evaluation mode, gradients off.
        tokenizer: Text to token numbers.
        name: The source it was asked for by.
        digest: Hex SHA-256 of all that decides what the towers give: config, vocabulary and weights. The
            same weights by name and from a folder have two digests, so stay with one of the two.
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
        ClipFileError: The folder lacks a file, the config is malformed or asks for what `ImageTower` does not
            do, or weights are missing, unknown or of another shape. Nothing is loaded in part or resized.
    """
    if (folder := clip_folder(source)) is not None:
        return _load_folder(folder)
    model = build_clip(source)
    name, pretrained = split_name(str(source))
    path = _download(name, pretrained)
    weights = _read_weights(path)
    if "logit_scale" in weights and weights["logit_scale"].numel() == 1:
        # A number in some files, a list of one in others.
        weights["logit_scale"] = weights["logit_scale"].reshape(model.logit_scale.shape)
    load_strictly(model, weights, f"clip source {str(source)!r}: {path}")
    digest = hashlib.sha256(json.dumps([name, open_clip.get_model_config(name)], sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    return LoadedClip(_frozen(model), build_tokenizer(source), str(source), digest.hexdigest())


def clip_folder(source: str | Path) -> Path | None:
    """The folder of a CLIP on disk, by itself or by the file of weights in it; None for a name."""
    path = Path(source)
    if path.is_file() and path.name == WEIGHTS_FILE:
        return path.parent
    return path if path.is_dir() else None


def _download(name: str, pretrained: str) -> Path:
    try:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained)))
    except (OSError, RuntimeError, ValueError) as error:
        raise ClipFileError(
            f"clip source '{name}/{pretrained}': its weights cannot be fetched ({error}); without a network "
            "give a folder instead"
        ) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    """All weights of a file, float32; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            content = content.get("state_dict", content)
        # Saved by several processes, every name may have a prefix.
        return {name.removeprefix("module."): value.float() for name, value in content.items()}
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise ClipFileError(
            f"{path} cannot be read as weights ({' '.join(str(error).split())[:200]}); restore the file, or "
            "give a folder with safetensors (experiments/convert_clip.py makes one of OpenAI's archive)"
        ) from None


def split_name(source: str) -> tuple[str, str]:
    """Model and weights of open_clip that a source names, as `model/pretrained`.

    Raises:
        ClipFileError: It names no model or no weights of open_clip, and it is no folder; or the weights were
            trained with another activation than the model has.
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
    # Of two models that differ in the activation alone open_clip takes the wrong one with a warning.
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
        ClipFileError: The config is missing, malformed or asks for what `ImageTower` does not do, or there is
            no such name.
    """
    if (folder := clip_folder(source)) is not None:
        return _build_folder(folder)
    name, _ = split_name(str(source))
    settings = open_clip.get_model_config(name)
    if not settings.keys() <= {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"} or (
        "hf_model_name" in settings["text_cfg"]
    ):
        raise ClipFileError(
            f"clip source {str(source)!r} has towers that are not CLIP's own; use a plain vision transformer "
            "such as ViT-B-16-quickgelu/openai"
        )
    if other := _options_beside(settings["vision_cfg"]):
        raise _not_plain(f"clip source {str(source)!r}", other)
    return open_clip.CLIP(**settings)


def _build_folder(folder: Path) -> open_clip.CLIP:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ClipFileError(f"{path} is missing; a CLIP folder needs it (open_clip's model_cfg)")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        vision = settings["vision_cfg"]
        size = vision["image_size"]
        vision["image_size"] = tuple(size) if isinstance(size, list) else size
        other = _options_beside(vision)
        model = None if other else open_clip.CLIP(**settings)
    except _MALFORMED as error:
        raise ClipFileError(f"{path}: not a model config of open_clip ({error!r})") from error
    if model is None:
        raise _not_plain(path, other)
    return model


def build_tokenizer(source: str | Path) -> Any:
    """Text to token numbers, as the CLIP of a source counts them; some names need a file from the network."""
    if (folder := clip_folder(source)) is None:
        return open_clip.get_tokenizer(split_name(str(source))[0])
    settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    merges = folder / MERGES_FILE
    return SimpleTokenizer(
        **({"bpe_path": str(merges)} if merges.is_file() else {}),
        context_length=settings["text_cfg"].get("context_length", 77),
    )


_MALFORMED = (
    AssertionError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""What open_clip raises of settings that make no model."""
_SHAPE_OPTIONS = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}


def _options_beside(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Options of open_clip's image tower that `ImageTower` would pass over in silence."""
    usual = {field.name: field.default for field in fields(open_clip.CLIPVisionCfg)}
    other = {
        name: value
        for name, value in vision.items()
        if name not in _SHAPE_OPTIONS and value != usual.get(name, value)
    }
    # A list of layers makes a convolutional network.
    return other if isinstance(vision.get("layers", 0), int) else other | {"layers": vision["layers"]}


def _not_plain(source: Path | str, other: Mapping[str, Any]) -> ClipFileError:
    told = ", ".join(f"{name}={value!r}" for name, value in other.items())
    return ClipFileError(
        f"{source}: the image tower has {told}; a plain vision transformer is needed, such as that of "
        "ViT-B-16-quickgelu/openai"
    )


def write_merges(path: Path, count: int) -> int:
    """Write the first `count` byte-pair merges of CLIP's tokenizer, the most frequent ones, to `path`.

    A tokenizer over them splits rare words into more pieces and needs `512 + count + 2` token numbers
    instead of 49,408, which is what keeps a small CLIP small.

    Returns:
        The vocabulary size.
    """
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as source:
        lines = [next(source) for _ in range(count + 1)]
    # A fixed modification time: the same merges give the same bytes.
    path.write_bytes(gzip.compress("".join(lines).rstrip("\n").encode(), mtime=0))
    return 512 + count + 2


def _load_folder(folder: Path) -> LoadedClip:
    model = build_clip(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ClipFileError(f"{path} is missing; a CLIP folder needs it (weights as safetensors)")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    promised = folder / DIGEST_FILE
    if promised.is_file() and promised.read_text().split()[:1] != [digest]:
        raise ClipFileError(f"{path} has SHA-256 {digest}, not the one in {promised}; restore the file")
    weights = _read_weights(path)
    load_strictly(model, weights, path)
    return LoadedClip(_frozen(model), build_tokenizer(folder), str(folder), _folder_digest(folder, digest))


def _folder_digest(folder: Path, weights: str) -> str:
    """Digest of all that decides what the towers give: config, merges and weights."""
    config = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]
    merges = folder / MERGES_FILE
    parts = {
        "model_cfg": config,
        "merges": hashlib.sha256(merges.read_bytes()).hexdigest() if merges.is_file() else None,
        "weights": weights,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path | str) -> None:
    """Load all of a module's weights, or none.

    Raises:
        ClipFileError: Names the weights that are missing, unknown or of another shape.
    """
    problems = misfits({name: value.shape for name, value in module.state_dict().items()}, weights)
    if problems:
        raise ClipFileError(f"{path}: {len(problems)} weights do not fit: " + "; ".join(problems))
    module.load_state_dict(weights)


def misfits(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> list[str]:
    """Which weights are missing, unknown or of another shape than expected, one sentence each."""
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != tuple(shape)
    ]
    return problems


def _frozen(model: open_clip.CLIP) -> open_clip.CLIP:
    return model.eval().requires_grad_(False)
