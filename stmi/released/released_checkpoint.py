"""Reads a checkpoint of the authors' released code into `STMI`, with the options of the `released` recipe.

Its weights have other names and some have other shapes. U is flattened with the modality as the fastest axis
there; here the values of a modality are adjacent. A checkpoint also holds modules that the released code
builds but never uses, which are left out, and CLIP's text tower. STMI does not hold that tower, because it is
frozen; `text_weights` returns it for encoding captions.

The model for RGBNT100 has three heads, one for each modality, instead of the one on G of the models for
RGBNT201 and MSVR310. Which of the two a checkpoint is follows from its names.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from pickle import UnpicklingError

import open_clip
import torch
from torch import Tensor

from stmi.clip.loading import LoadedClip
from stmi.clip.openai_archive import HEAD_WIDTH
from stmi.clip.weights import misfits
from stmi.config import ChiConfig, FusionConfig, ImageSize, ModelConfig, SfmConfig, StrConfig
from stmi.model import STMI
from stmi.released import parameter_names
from stmi.released.parameter_names import (
    CAMERAS,
    CLIP,
    IMAGE,
    POSITIONS,
    SIZED_BY,
    has_separate_modality_heads,
    is_unused,
)

logger = logging.getLogger(__name__)

"""Width of a head in every published CLIP; the number of heads does not follow from any shape."""


class ReleasedCheckpointError(ValueError):
    """A state dict that is not a checkpoint of the released code; names what does not fit."""


@dataclass(frozen=True)
class _Sizes:
    """Sizes that follow from the shapes in a checkpoint."""

    width: int
    patch: int
    layers: int
    embedding: int
    cameras: int
    identities: int
    tokens: int
    text: dict[str, int]
    separate_modality_heads: bool


def read(path: Path) -> dict[str, Tensor]:
    """The state dict that the released code saved; nothing in the file is executed.

    Raises:
        ReleasedCheckpointError: The file holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, LookupError, ValueError) as error:
        # A file that is cut off ends in an error without a text, other bytes in one with a number.
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        raise ReleasedCheckpointError(
            f"not a file of weights alone ({reason}); expected what torch.save(model.state_dict(), ...) "
            "writes"
        ) from None


def load(state_dict: Mapping[str, Tensor], image_size: tuple[int, int] = (256, 128)) -> STMI:
    """Load a checkpoint into the released model, float32, in evaluation mode.

    Cameras, identities, K, layers, widths and patch size follow from the shapes; no pretrained CLIP is
    needed. The weights in `unused_names` are left out and logged. The model has its own copy of the weights.

    Args:
        state_dict: The state dict that the released code saves, on any device; every name may have the prefix
            `module.`.
        image_size: Height and width in pixels that the checkpoint was trained with. The shapes are the same
            for 256 x 128 (people) and 128 x 256 (vehicles).

    Raises:
        ReleasedCheckpointError: Weights are missing, unknown or of another shape, or the position embedding
            does not fit the image size. Nothing is loaded in part.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise ReleasedCheckpointError(
            f"released checkpoint: a {type(state_dict).__name__}, expected a state dict, names to tensors"
        )
    unused = unused_names(state_dict)
    given = parameter_names.plain_names(state_dict)
    kept = {name: value for name, value in given.items() if not is_unused(name)}
    sizes = _sizes(kept)
    model, text_shapes = _build(sizes, image_size)
    rows = model.grid[0] * model.grid[1] + 1
    if len(kept[POSITIONS]) != rows:
        raise ReleasedCheckpointError(
            f"{POSITIONS} has {len(kept[POSITIONS])} rows, but image_size={tuple(image_size)} "
            f"makes {model.grid[0]} x {model.grid[1]} patches and a class token, {rows} rows; "
            "give the image size that the checkpoint was trained at"
        )
    _refuse(misfits(text_shapes | parameter_names.released_shapes(model.state_dict(), sizes.layers), kept))
    weights = {
        name: parameter_names.convert_weight(name, kept, sizes.layers).detach().to(value.dtype, copy=True)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights, assign=True)
    if unused:
        logger.info("released checkpoint: left out, built there and never used: %s", ", ".join(unused))
    return model.eval()


def unused_names(state_dict: Mapping[str, Tensor]) -> list[str]:
    """Names in the state dict of the weights that the released code builds but never uses."""
    plain = parameter_names.plain_names(state_dict)
    return [given for given, name in zip(state_dict, plain, strict=True) if is_unused(name)]


def text_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower that computed T, by open_clip's names: `open_clip.CLIP` without its image tower.

    The tower is OpenAI's, since it is frozen; so is the tokenizer. `logit_scale` is left out: no feature
    depends on it.
    """
    return {
        name.removeprefix(CLIP): value
        for name, value in parameter_names.plain_names(state_dict).items()
        if name.startswith(CLIP) and not name.startswith(IMAGE) and not is_unused(name)
    }


def encode_captions(state_dict: Mapping[str, Tensor], captions: list[str]) -> Tensor:
    """Encode captions with a checkpoint's own text tower: T, float32 `(captions, embedding)`.

    Args:
        state_dict: The same argument of `load`.
        captions: Texts; they are cut at the context length of the tower.
    """
    weights = text_weights(state_dict)
    sizes = _sizes(parameter_names.plain_names(state_dict))
    settings = sizes.text | {"heads": sizes.text["width"] // HEAD_WIDTH}
    # The image tower is not used, so it is as small as possible.
    vision = {"image_size": 1, "patch_size": 1, "layers": 1, "width": 1, "head_width": 1}
    towers = open_clip.CLIP(sizes.embedding, vision, settings, quick_gelu=True).eval()
    towers.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    tokens = open_clip.SimpleTokenizer(context_length=sizes.text["context_length"])(captions)
    with torch.no_grad():
        return towers.encode_text(tokens)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ReleasedCheckpointError(
            f"released checkpoint: {len(problems)} weights do not fit: {'; '.join(problems)}; "
            "name the recipe that it was trained by"
        )


def _sizes(weights: Mapping[str, Tensor]) -> _Sizes:
    # The usual mistake is a state dict inside another dict.
    _refuse(
        [
            f"{name} is a {type(value).__name__}, expected a tensor"
            for name, value in weights.items()
            if not isinstance(value, Tensor)
        ]
    )
    missing = [f"missing {name} {shape}" for name, shape in SIZED_BY.items() if name not in weights]
    if missing:
        _refuse(missing + [f"unknown {name}" for name in weights if not parameter_names.is_known(name)])
    shapes = {name: tuple(weights[name].shape) for name in SIZED_BY}
    _refuse(
        [
            f"{name} is {shapes[name]}, expected {expected}"
            for name, expected in SIZED_BY.items()
            if len(shapes[name]) != expected.count(",") + 1 or 0 in shapes[name]
        ]
    )
    width, _, patch, _ = shapes[f"{IMAGE}conv1.weight"]
    if width % HEAD_WIDTH:
        _refuse(
            [f"{IMAGE}conv1.weight has width {width}, expected a multiple of {HEAD_WIDTH}, a head's width"]
        )
    context, text_width = shapes[f"{CLIP}positional_embedding"]
    return _Sizes(
        width=width,
        patch=patch,
        layers=_layers(weights, IMAGE),
        embedding=shapes[f"{IMAGE}proj"][1],
        cameras=shapes[CAMERAS][0],
        identities=shapes["classifier_t.weight"][0],
        tokens=shapes[f"{parameter_names.QUERIES}rgb"][1],
        text={
            "context_length": context,
            "vocab_size": shapes[f"{CLIP}token_embedding.weight"][0],
            "width": text_width,
            "heads": 1,  # changes no shape, and this tower encodes nothing
            "layers": _layers(weights, CLIP),
        },
        separate_modality_heads=has_separate_modality_heads(weights),
    )


def _layers(weights: Mapping[str, Tensor], tower: str) -> int:
    pattern = re.compile(re.escape(f"{tower}transformer.resblocks.") + r"(\d+)\.attn\.in_proj_weight$")
    return sum(bool(pattern.match(name)) for name in weights)


def _build(sizes: _Sizes, image_size: tuple[int, int]) -> tuple[STMI, dict[str, tuple[int, ...]]]:
    """The model without storage, and the shapes of the text tower by released names."""
    try:
        height, width = map(index, image_size)
    except (TypeError, ValueError):
        raise ReleasedCheckpointError(
            f"image_size={image_size!r}: expected height and width in whole pixels, such as (256, 128)"
        ) from None
    vision = {
        "image_size": (height, width),
        "layers": sizes.layers,
        "width": sizes.width,
        "head_width": HEAD_WIDTH,
        "patch_size": sizes.patch,
    }
    try:
        # The model of `experiments/recipes.py::released`. Only training reads p; here it is RGBNT201's.
        config = ModelConfig(
            image=ImageSize(height=height, width=width),
            camera_embedding=True,
            sfm=SfmConfig(mask_threshold=0.5, perturbation_draw="layer_and_modality"),
            str=StrConfig(tokens=sizes.tokens),
            chi=ChiConfig(convolution="released", incidence="euclidean", activation="silu"),
            fusion=FusionConfig(dropout=0.1),
            separate_modality_heads=sizes.separate_modality_heads,
        )
        # On the meta device nothing is initialised or stored; every weight comes from the checkpoint.
        with torch.device("meta"):
            towers = open_clip.CLIP(sizes.embedding, vision, sizes.text, quick_gelu=True)
            clip = LoadedClip(towers, tokenizer=None, name="released checkpoint", digest="")
            model = STMI(config, clip, sizes.identities, sizes.cameras, seed=0)
    except ValueError as error:
        raise ReleasedCheckpointError(f"released checkpoint: its sizes make no model: {error}") from error
    text = {
        f"{CLIP}{name}": tuple(value.shape)
        for name, value in towers.state_dict().items()
        if not name.startswith("visual.") and name != "logit_scale"
    }
    return model, text
