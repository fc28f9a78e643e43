"""CLIP's two towers: loading them from a file, and the image tower that SFM can modulate.

The towers are open_clip's. The text tower is used as it is, frozen unless it is to be trained. The image
tower is rebuilt here with the same parameters, because its attention takes a mask and because retrieval
uses every token after the projection, not only the class token. Without a mask it gives what open_clip's
gives.

A folder with `open_clip_config.json` and `open_clip_model.safetensors` is read with safetensors: a
weights file is never executed.
"""

import copy
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from stmi.config import ClipConfig, SfmConfig
from stmi.feature_modulation import ModulationStrength
from stmi.quick_gelu import QuickGELU
from stmi.transformer_block import TransformerBlock

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

    Raises:
        ClipFileError: The folder lacks a file, the config is malformed, or weights are missing, unknown
            or of another shape. Nothing is loaded in part.
    """
    if Path(source).is_dir():
        return _load_folder(Path(source))
    name, pretrained = split_name(str(source))
    try:
        model = open_clip.create_model(name, pretrained=pretrained, weights_only=True)
    except RuntimeError as error:
        raise ClipFileError(f"clip source {str(source)!r} cannot be loaded: {error}") from error
    _require_transformer(model, source)
    _require_own_positions(model, name, pretrained)
    digest = hashlib.sha256(json.dumps([name, open_clip.get_model_config(name)], sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    return LoadedClip(_frozen(model), open_clip.get_tokenizer(name), str(source), digest.hexdigest())


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


def build_clip(folder: Path) -> tuple[open_clip.CLIP, Any]:
    """Build the model and tokenizer that a folder's config describes, with fresh weights.

    Raises:
        ClipFileError: The config is missing or malformed.
    """
    path = folder / CONFIG_FILE
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        size = settings["vision_cfg"]["image_size"]
        settings["vision_cfg"]["image_size"] = tuple(size) if isinstance(size, list) else size
        model = open_clip.CLIP(**settings)
    except FileNotFoundError:
        raise ClipFileError(f"{path} is missing; a CLIP folder needs it (open_clip's model_cfg)") from None
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise ClipFileError(f"{path}: not a model config of open_clip ({error!r})") from error
    _require_transformer(model, folder)
    merges = folder / MERGES_FILE
    tokenizer = SimpleTokenizer(
        **({"bpe_path": str(merges)} if merges.is_file() else {}),
        context_length=settings["text_cfg"].get("context_length", 77),
    )
    return model, tokenizer


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
    model, tokenizer = build_clip(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ClipFileError(f"{path} is missing; a CLIP folder needs it (weights as safetensors)")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    promised = folder / DIGEST_FILE
    if promised.is_file() and promised.read_text().split()[:1] != [digest]:
        raise ClipFileError(f"{path} has SHA-256 {digest}, not the one in {promised}; restore the file")
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise ClipFileError(f"{path} cannot be read as safetensors ({error}); restore the file") from None
    load_strictly(model, weights, path)
    return LoadedClip(_frozen(model), tokenizer, str(folder), _folder_digest(folder, digest))


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


def _require_transformer(model: nn.Module, source: Path | str) -> None:
    if not isinstance(getattr(model, "visual", None), VisionTransformer):
        kind = type(getattr(model, "visual", model)).__name__
        raise ClipFileError(
            f"clip source {str(source)!r} has a {kind} image tower; a vision transformer is needed"
        )


def _require_own_positions(model: nn.Module, name: str, pretrained: str) -> None:
    """open_clip resizes tables of positions that do not fit; its log alone tells."""
    path = open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained))
    weights = open_clip.factory.load_state_dict(path, weights_only=True)
    expected = {
        name: value.shape
        for name, value in model.state_dict().items()
        if name.endswith("positional_embedding") and name in weights
    }
    problems = misfits(expected, {name: weights[name] for name in expected})
    if problems:
        raise ClipFileError(f"clip source '{name}/{pretrained}': {path}: " + "; ".join(problems))


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


class ImageTower(nn.Module):
    """CLIP's vision transformer, shared by the three modalities: every token, projected (eq. 1).

    Args:
        clip: The pretrained CLIP whose weights it starts from.
        config: How to resize the position embedding.
        grid: Token rows and columns of the images to come.
        sfm: The modulation; switched off, attention is plain.
        cameras: Number of cameras with a learnable vector added to the class token; 0 for none.
    """

    def __init__(
        self, clip: LoadedClip, config: ClipConfig, grid: tuple[int, int], sfm: SfmConfig, cameras: int = 0
    ) -> None:
        super().__init__()
        visual = clip.model.visual
        width = visual.conv1.out_channels
        blocks = visual.transformer.resblocks
        heads = blocks[0].attn.num_heads
        quick = type(blocks[0].mlp.gelu).__name__ == "QuickGELU"
        self.grid = grid
        self.patch_size = visual.conv1.kernel_size[0]
        self.conv1 = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid[0] * grid[1], width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                heads,
                block.mlp.c_fc.out_features,
                QuickGELU() if quick else nn.GELU(),
                sfm.logit_scale,
            )
            for block in blocks
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, clip.embed_dim))
        weights = {
            name.replace("transformer.resblocks.", "blocks."): value.detach().clone()
            for name, value in visual.state_dict().items()
        }
        weights["positional_embedding"] = resize_position_embedding(
            weights["positional_embedding"], visual.grid_size, grid, config.position_interpolation
        )
        load_strictly(self, weights, clip.name)
        # What CLIP does not know comes after its weights are in.
        self.modulation = ModulationStrength(sfm, len(blocks), heads) if sfm.enabled else None
        self.camera_embedding = nn.Parameter(torch.empty(cameras, width)) if cameras else None
        if self.camera_embedding is not None:
            # The released code cuts the normal off at 2, which is a hundred deviations away.
            nn.init.normal_(self.camera_embedding, std=0.02)

    def forward(
        self, images: Tensor, foreground: Tensor | None = None, camera_id: Tensor | None = None
    ) -> Tensor:
        """All tokens of a batch of images.

        Args:
            images: Normalised pixels, `(batch, 3, height, width)`.
            foreground: Boolean patches, `(layers or 1, batch, patches)`, or None for plain attention.
            camera_id: `(batch,)`, where the tower has a camera embedding.

        Returns:
            Projected tokens, the class token first, `(batch, 1 + patches, embed_dim)`.
        """
        patches = self._embed_patches(images)
        class_token = self.class_embedding.expand(len(images), 1, -1)
        if self.camera_embedding is not None and camera_id is not None:
            class_token = class_token + self.camera_embedding[camera_id][:, None]
        tokens = torch.cat([class_token.to(patches.dtype), patches], dim=1)
        tokens = self.ln_pre(tokens + self.positional_embedding.to(tokens.dtype))
        if foreground is not None:
            foreground = functional.pad(foreground, (1, 0), value=True).expand(len(self.blocks), -1, -1)
        for layer, block in enumerate(self.blocks):
            strength = None if self.modulation is None else self.modulation.of_layer(layer)
            mask = None if foreground is None else foreground[layer]
            tokens = block(tokens, mask, strength)
        return self.ln_post(tokens) @ self.proj

    def _embed_patches(self, images: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(images.device.type):
            return self.conv1(images).flatten(2).transpose(1, 2)
        # As one product: the backward pass of a convolution in bfloat16 is four times slower.
        size, (rows, columns) = self.patch_size, self.grid
        patches = images.unflatten(3, (columns, size)).unflatten(2, (rows, size)).permute(0, 2, 4, 1, 3, 5)
        return functional.linear(
            patches.reshape(len(images), rows * columns, -1), self.conv1.weight.flatten(1)
        )


def resize_position_embedding(
    embedding: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], interpolation: str
) -> Tensor:
    """Resize a position embedding to another token grid; the class token's row is kept.

    Args:
        embedding: `(1 + rows * columns, width)` of the old grid.
        old_grid: Rows and columns it was learned for.
        new_grid: Rows and columns wanted.
        interpolation: "bilinear" or "bicubic", without aligned corners or antialiasing.
    """
    if tuple(old_grid) == tuple(new_grid):
        return embedding
    class_row, patches = embedding[:1], embedding[1:]
    image = patches.T.reshape(1, -1, *old_grid)
    resized = functional.interpolate(image, size=new_grid, mode=interpolation, align_corners=False)
    return torch.cat([class_row, resized.flatten(2)[0].T])


class TextTower(nn.Module):
    """CLIP's text tower with weights of its own, to be trained.

    Args:
        clip: The pretrained CLIP whose weights it starts from.
    """

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__()
        # Tensors without content (`FakeTensorMode`) can be cloned; copying them deeply corrupts memory.
        copies: dict[int, Any] = {id(x): nn.Parameter(x.detach().clone()) for x in clip.model.parameters()}
        copies |= {id(x): x.clone() for x in clip.model.buffers()}
        self.clip = copy.deepcopy(clip.model, copies)
        # Of CLIP, only what encodes text stays.
        del self.clip.visual, self.clip.logit_scale
        self.clip.requires_grad_(True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers `(batch, context)` to T before normalisation, `(batch, embed_dim)`."""
        return self.clip.encode_text(tokens)
