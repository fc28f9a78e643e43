"""The options of the method: frozen models that refuse unknown keys and impossible values.

Each field is one named option. Where the paper is silent, or the released code differs from it, the
field says so. `experiments/recipes.py` holds the named sets of values.
"""

from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stmi.modality import Modality

LARGEST_COUNT = 10**6
"""Upper limit of every count; a larger value is a typing error."""
LARGEST_SEED = 2**63 - 1
"""The largest seed that NumPy, SQLite and Arrow take as an int64."""
Probability = Annotated[float, Field(ge=0, le=1)]
PerLayer = Probability | Annotated[tuple[Probability, ...], Field(min_length=1)]
"""One number for all layers of the image tower, or one for each layer."""
PerLayerAndModality = PerLayer | Annotated[dict[Modality, PerLayer], Field(min_length=len(Modality))]
"""The same for all modalities, or one setting for each modality."""


def _kinds(annotation: Any) -> list[Any]:
    """What an annotation is made of."""
    return [annotation, *(kind for part in get_args(annotation) for kind in _kinds(part))]


class Section(BaseModel):
    """A frozen group of options; an unknown name or a value of another type is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _require_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a switch where a number is expected: pydantic would make 1 and 0 of on and off."""
        if isinstance(value, bool):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if bool not in kinds and (int in kinds or float in kinds):
                raise PydanticCustomError(
                    "number", "Input should be a number, not on or off" + "; or null" * (NoneType in kinds)
                )
        return value


class Switch(Section):
    """A module that can be switched off: `--set model.sfm=off` is `enabled=False`."""

    enabled: bool = Field(True, description="Whether the module takes part.")


class ImageSize(Section):
    """Height and width of the model's input."""

    height: int = Field(256, ge=8, le=4096, description="Height in pixels.")
    width: int = Field(128, ge=8, le=4096, description="Width in pixels.")


class ClipConfig(Section):
    """The source of the pretrained towers."""

    source: str = Field(
        "ViT-B-16-quickgelu/openai",
        description="A folder with open_clip_config.json and open_clip_model.safetensors, "
        "or an open_clip name as model/pretrained.",
    )
    position_interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="How the position embedding is resized to another token grid."
    )


class SfmConfig(Switch):
    """Segmentation-guided feature modulation (SFM), with the variants of Table 5."""

    sharing: Literal["all_layers", "early_half", "late_half", "per_head", "per_layer"] = Field(
        "per_layer",
        description="Which layers are modulated and which share a pair of alpha and beta (Table 5). "
        "per_head has one pair for each head of every layer.",
    )
    perturbation: PerLayerAndModality = Field(
        0.01,
        description="Probability p that a background token becomes foreground: a number, a list with one for "
        "each layer of the image tower, or a mapping of RGB, NIR and TIR to either.",
    )
    perturbation_draw: Literal["sample", "layer_and_modality"] = Field(
        "sample",
        description="Perturb the mask once for a sample (the paper's single m), or with new random numbers "
        "in every layer and modality (the released code). In the first case different p give nested masks.",
    )
    logit_scale: Literal["head_width", "model_width"] = Field(
        "head_width",
        description="D in the square root of eq. 8: the width of one head, as in CLIP's training and the "
        "released code, or the width of all heads together. With SFM it holds for all layers, also for those "
        "that are not modulated.",
    )
    mask_threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="A token is foreground if at least this share of its patch is; 0 means any overlap "
        "(the paper's words). The released code uses 0.5.",
    )
    initial_strength: float = Field(0.1, description="Mean of the initial alpha and beta.")
    initial_strength_std: float = Field(
        0.05, ge=0, description="Standard deviation of the initial alpha and beta."
    )

    @property
    def perturbs(self) -> bool:
        """Whether the probability p is above zero in any layer of any modality."""
        given = self.perturbation
        of_modalities = given.values() if isinstance(given, dict) else (given,)
        return any(max(p) > 0 if isinstance(p, tuple) else p > 0 for p in of_modalities)

    @field_validator("perturbation", mode="wrap")
    @classmethod
    def _probabilities(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> PerLayerAndModality:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(
                f"model.sfm.perturbation={value}: expected a probability from 0 to 1, a list with one for "
                "each layer, or a mapping of RGB, NIR and TIR to either"
            ) from None


class StrConfig(Switch):
    """Semantic token reallocation (STR)."""

    tokens: int = Field(4, ge=1, le=16, description="K: learnable query tokens of each modality.")
    heads: int = Field(8, ge=1, le=LARGEST_COUNT, description="Heads of the cross-attention.")
    mlp_ratio: float = Field(4.0, gt=0, description="Hidden width of the FFN over the token width.")


class ChiConfig(Switch):
    """Cross-modal hypergraph interaction (CHI), and its alternatives of Table 4."""

    mixer: Literal["hypergraph", "mlp", "self_attention"] = Field(
        "hypergraph", description="The module for the semantic tokens (Table 4 D, B, C); off is Table 4 A."
    )
    convolution: Literal["paper", "released"] = Field(
        "paper", description="Equations 15-16, or the released code's mean of means with GroupNorm."
    )
    incidence: Literal["cosine", "euclidean", "nearest", "density"] = Field(
        "cosine",
        description="Which nodes are in the hyperedge of a node: those of a cosine similarity of tau or more "
        "(the paper), those nearer than a distance (released code), its nearest ones, or those of the tau "
        "that gives a density.",
    )
    similarity_threshold: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="tau, for which the paper names no value; where incidence is density, tau of the first "
        "training step.",
    )
    distance_threshold: float = Field(
        5.0, gt=0, description="Nodes nearer than this share a hyperedge, where incidence is euclidean."
    )
    neighbours: int = Field(
        4,
        ge=1,
        le=LARGEST_COUNT,
        description="Nodes beside its own that a hyperedge holds, where incidence is nearest.",
    )
    density: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Share of all pairs of node and hyperedge, where incidence is density. In training tau "
        "follows the batches; it is then fixed, so that an embedding does not depend on its batch.",
    )
    exclude_text_copies: bool = Field(
        False,
        description="Leave the copies of the text token that STR makes for each modality alone in their "
        "hyperedges; neighbours and density are then of the other nodes.",
    )
    activation: Literal["relu", "gelu", "silu"] = Field(
        "gelu", description="sigma of eq. 15, which the paper does not name; SiLU in the released code."
    )


class FusionConfig(Section):
    """Cross-attention from the class tokens to the semantic tokens."""

    without_chi: Literal["cross_attention", "concatenation"] = Field(
        "cross_attention",
        description="The fusion if CHI is off: eq. 17-18 over the tokens of STR (H' = H), or concatenated "
        "class tokens, as in the text of the paper; then STR has no effect and is not built.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the attention and on its output.")


class TextConfig(Switch):
    """The text feature T, a query of STR and a node of CHI; without it, U depends on the images alone."""

    fine_tune: bool = Field(
        False,
        description="Train the text tower and encode the captions in every step, instead of reading the "
        "features of the frozen tower (the snowflake in figure 3 of the paper).",
    )

    @model_validator(mode="after")
    def _needs_text_to_train(self) -> Self:
        if self.fine_tune and not self.enabled:
            raise ValueError(
                "model.text.fine_tune=True trains a text tower, but model.text is off; switch one of them"
            )
        return self


class ModelConfig(Section):
    """The network."""

    image: ImageSize = ImageSize()
    clip: ClipConfig = ClipConfig()
    pixels: Literal["half", "clip"] = Field(
        "half",
        description="Mean and standard deviation for normalising pixels: 0.5 and 0.5 (the released code; the "
        "paper does not say), or those of the images that CLIP was trained on.",
    )
    neck: Literal["batch_norm", "none"] = Field(
        "batch_norm",
        description="The layer between a feature and its classifier: a batch norm with a frozen bias (the "
        "released code; the paper mentions none), or none.",
    )
    separate_modality_heads: bool = Field(
        False,
        description="Supervise G as three features, one per modality (released code for RGBNT100).",
    )
    camera_embedding: bool = Field(
        False, description="Add a learnable vector of the camera to the class token (released code)."
    )
    text: TextConfig = TextConfig()
    sfm: SfmConfig = SfmConfig()
    str: StrConfig = StrConfig()
    chi: ChiConfig = ChiConfig()
    fusion: FusionConfig = FusionConfig()


class LossConfig(Section):
    """The objective: label-smoothed cross-entropy plus triplet loss, on each of G, U and T."""

    identity_weight: float = Field(1.0, ge=0, description="Weight of the cross-entropy.")
    triplet_weight: float = Field(1.0, ge=0, description="Weight of the batch-hard triplet loss.")
    triplet_margin: float | None = Field(
        None,
        ge=0,
        description="Margin of the triplet loss; null for the soft margin (the released code; the paper does "
        "not say).",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Epsilon of the smoothed labels.")


class AugmentConfig(Section):
    """Training augmentation; probabilities and sizes are per sample."""

    geometry: Literal["shared", "per_modality"] = Field(
        "shared",
        description="One random flip, crop and erasing for a sample, which also moves its mask, or one for "
        "each modality, which does not move the mask (released code).",
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    crop_padding: int = Field(10, ge=0, le=256, description="Pixels padded on each side, then cropped.")
    erase: float = Field(0.5, ge=0, le=1, description="Probability of random erasing.")
    erase_aspect: Literal["uniform", "log_uniform"] = Field(
        "uniform",
        description="Distribution of the erased rectangle's height over width, 0.3 to 3.3: uniform (Zhong et "
        "al. 2020, cited by the paper), or with a uniform logarithm (timm, with the released code's limits).",
    )


class BatchConfig(Section):
    """Identity-balanced batches: P identities x K samples, over all workers together."""

    size: int = Field(72, ge=2, le=LARGEST_COUNT, description="Samples in the global batch.")
    samples_per_identity: int = Field(
        8, ge=2, le=LARGEST_COUNT, description="Samples of one identity in a batch."
    )

    @model_validator(mode="after")
    def _whole_identities(self) -> Self:
        if self.size % self.samples_per_identity:
            raise ValueError(
                f"batch.size={self.size} is not a multiple of batch.samples_per_identity="
                f"{self.samples_per_identity}; use identities x samples, for example "
                f"{max(2, self.size // self.samples_per_identity) * self.samples_per_identity}"
            )
        if self.size == self.samples_per_identity:
            raise ValueError(f"batch.size={self.size} holds one identity; the triplet loss needs two or more")
        return self


class OptimConfig(Section):
    """Optimiser and learning rate."""

    optimizer: Literal["adam", "adamw"] = Field(
        "adam", description="Adam with weight decay in the gradient, or AdamW (decoupled weight decay)."
    )
    learning_rate: float = Field(3.5e-6, gt=0, description="The highest rate.")
    final_learning_rate: float = Field(3.5e-7, ge=0, description="The rate at the end (cosine).")
    schedule: Literal["cosine", "released"] = Field(
        "cosine",
        description="Cosine by step after the warm-up, or the released code's by epoch: ten epochs down from "
        "ten times the rate, with seeded noise.",
    )
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs of linear warm-up from zero.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the optimiser's mean of gradients.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of its mean of squared gradients.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay, except of alpha and beta.")
    gradient_clip: float = Field(0.0, ge=0, description="Largest gradient norm; 0 does not limit it.")
    modulation_rate_factor: float = Field(
        1.0, gt=0, description="Learning rate of alpha and beta over that of the other weights."
    )
    modulation_weight_decay: float = Field(1e-4, ge=0, description="Weight decay of alpha and beta.")

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"optim.final_learning_rate={self.final_learning_rate} is above "
                f"optim.learning_rate={self.learning_rate}; the schedule decays"
            )
        if self.schedule == "released" and self.warmup_epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.warmup_epochs} has no effect where optim.schedule=released, "
                "which has ten of its own; leave it at 0, or set optim.schedule=cosine"
            )
        return self
