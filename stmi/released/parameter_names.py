"""Names of the weights in the authors' released code, and the weight of `STMI` that each belongs to.

The model for RGBNT100 has a head for each modality, those for RGBNT201 and MSVR310 one head on G.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from stmi.modality import MODALITIES

CLIP = "BACKBONE.base."
IMAGE = f"{CLIP}visual."
POSITIONS = f"{IMAGE}positional_embedding"
CAMERAS = "BACKBONE.cv_embed"
QUERIES = "STR_CHI.inp_tokens_"
_RELEASED_PREFIX = {
    "image_tower.blocks.": f"{IMAGE}transformer.resblocks.",
    "image_tower.camera_embedding": CAMERAS,
    "image_tower.": IMAGE,
    "reallocation.RGB.queries": f"{QUERIES}rgb",
    "reallocation.NIR.queries": f"{QUERIES}nir",
    "reallocation.TIR.queries": f"{QUERIES}tir",
    "reallocation.RGB.block.": "STR_CHI.inp_block1.",
    "reallocation.NIR.block.": "STR_CHI.inp_block2.",
    "reallocation.TIR.block.": "STR_CHI.inp_block3.",
    "interaction.linear.": "STR_CHI.hyper_module.hgconv.fc.",
    "interaction.norm.": "STR_CHI.hyper_module.norm.",
    "fusion.query.": "STR_CHI.proj_q_cross.",
    "fusion.key.": "STR_CHI.proj_k_cross.",
    "fusion.value.": "STR_CHI.proj_v_cross.",
    "fusion.out.": "STR_CHI.cross_proj_out.",
    "heads.G.norm.": "bottleneck_v.",
    "heads.G.classifier.": "classifier_v.",
    "heads.RGB.norm.": "bottleneck_v_rgb.",
    "heads.RGB.classifier.": "classifier_v_rgb.",
    "heads.NIR.norm.": "bottleneck_v_nir.",
    "heads.NIR.classifier.": "classifier_v_nir.",
    "heads.TIR.norm.": "bottleneck_v_tir.",
    "heads.TIR.classifier.": "classifier_v_tir.",
    "heads.T.norm.": "bottleneck_t.",
    "heads.T.classifier.": "classifier_t.",
    "heads.U.norm.": "bottleneck_visual.",
    "heads.U.classifier.": "visual_classifier.",
}
"""Prefix of a name here, to the prefix of the released name; the first match counts."""
_UNUSED = re.compile(
    r"STR_CHI\.(inp_block|inp_self_attn|cross_attn|mlp_proj|proj_q|proj_k|proj_v|proj_out)\."
    r"|(textual_classifier|bottleneck_textual)\."
    r"|BACKBONE\.base\.(logit_scale|visual\.new_positional_embedding)$"
    r"|BACKBONE\.base\.transformer\.resblocks\.\d+\.adapter_(alpha|beta)$"
)
SIZED_BY = {
    f"{IMAGE}conv1.weight": "(width, 3, patch, patch)",
    POSITIONS: "(1 + patches, width)",
    f"{IMAGE}proj": "(width, embedding)",
    f"{IMAGE}transformer.resblocks.0.attn.in_proj_weight": "(3 width, width)",
    f"{CLIP}transformer.resblocks.0.attn.in_proj_weight": "(3 text width, text width)",
    f"{CLIP}positional_embedding": "(context, text width)",
    f"{CLIP}token_embedding.weight": "(vocabulary, text width)",
    CAMERAS: "(cameras, 1, width)",
    f"{QUERIES}rgb": "(1, K, embedding)",
    "classifier_t.weight": "(identities, embedding)",
}
"""The weights whose shapes determine the sizes of all others."""


def is_unused(name: str) -> bool:
    """Whether the released code builds this weight but never uses it."""
    return _UNUSED.match(name) is not None


def is_known(name: str) -> bool:
    """Whether the name has the prefix of a weight that is read, or is one of those never used."""
    return name.startswith((*_RELEASED_PREFIX.values(), CLIP)) or is_unused(name)


def has_separate_modality_heads(names: Iterable[str]) -> bool:
    """Whether the names are those of a model with a head for each modality."""
    return any(name.startswith(_RELEASED_PREFIX["heads.RGB.classifier."]) for name in names)


def plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefix of `DataParallel`, which all names have or none."""
    if all(name.startswith("module.") for name in state_dict):
        return {name.removeprefix("module."): value for name, value in state_dict.items()}
    return dict(state_dict)


def _released_name(name: str) -> str:
    ours = next(prefix for prefix in _RELEASED_PREFIX if name.startswith(prefix))
    return _RELEASED_PREFIX[ours] + name.removeprefix(ours)


def _adapter_names(name: str, layers: int) -> list[str]:
    """Released names of our alphas or betas: one parameter in every layer."""
    kind = name.rpartition(".")[2]
    return [f"{IMAGE}transformer.resblocks.{layer}.adapter_{kind}" for layer in range(layers)]


def released_shapes(ours: Mapping[str, Tensor], layers: int) -> dict[str, tuple[int, ...]]:
    """Shapes in a checkpoint, by released names.

    Args:
        ours: The state dict of an `STMI`; only its shapes are read.
        layers: Layers of the image tower.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in ours.items():
        released, shape = _released_name(name), tuple(value.shape)
        if name.startswith("image_tower.modulation."):
            shapes |= dict.fromkeys(_adapter_names(name, layers), (1,))
        elif released == CAMERAS:
            shapes[released] = (shape[0], 1, shape[1])
        else:
            shapes[released] = (1, *shape) if released.startswith(QUERIES) else shape
    return shapes


def convert_weight(name: str, weights: Mapping[str, Tensor], layers: int) -> Tensor:
    """Read one weight of our `STMI` from a checkpoint, in our shape and order.

    Args:
        name: Its name in the state dict of `STMI`.
        weights: The checkpoint, by `plain_names`.
        layers: Layers of the image tower.
    """
    if name.startswith("image_tower.modulation."):
        return torch.stack([weights[adapter] for adapter in _adapter_names(name, layers)])[..., None, None]
    released = _released_name(name)
    value = weights[released]
    if released == CAMERAS:
        return value[:, 0]
    if released.startswith(QUERIES):
        return value[0]
    if name.startswith("heads.U.") and value.ndim:
        return value[..., modality_major(value.shape[-1] // len(MODALITIES)).to(value.device)]
    return value


def modality_major(embedding: int) -> Tensor:
    """Positions of the values of our U in the released U.

    Value c of modality m has position `m D + c` here and `3 c + m` there: `u[..., modality_major(D)]` puts a
    released U, or weights for it, in our order.

    Returns:
        Positions, int64, `(3 D,)`.
    """
    return torch.arange(embedding * len(MODALITIES)).view(embedding, len(MODALITIES)).T.flatten()
