"""STMI assembled: image tower with SFM, STR for each modality, CHI, fusion, and the identity heads.

Shapes below: B batch, M = 3 modalities, N patch tokens, K queries of STR, D embedding width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stmi import feature_modulation, keyed_random
from stmi.clip.loading import LoadedClip
from stmi.clip.towers import ImageTower, TextTower
from stmi.config import ModelConfig
from stmi.hypergraph import ClassTokenFusion, build_interaction
from stmi.incidence import Hypergraph, IncidenceRule, at_least_float32
from stmi.modality import MODALITIES
from stmi.model_input import ModelInput, RandomDraws
from stmi.token_reallocation import TokenReallocation

FEATURES = ("U", "G", "T", *MODALITIES, "GTTT")
"""Every retrieval feature: U fused, G class tokens concatenated, T text, the class token of each modality,
and GTTT, the released code's vehicle feature [RGB, NIR, TIR class tokens, T, T, T]. T and GTTT need text."""


@dataclass(frozen=True)
class Features:
    """The features that retrieval compares and the losses train.

    Attributes:
        U: Fused feature, its three rows concatenated, `(B, M D)`.
        G: Class tokens of the three modalities concatenated, `(B, M D)`.
        T: Text feature, `(B, D)`; None without text.
        class_tokens: `(B, M, D)`.
        hypergraph: None where the model has none.
    """

    U: Tensor
    G: Tensor
    T: Tensor | None
    class_tokens: Tensor
    hypergraph: Hypergraph | None

    def retrieval(self) -> dict[str, Tensor]:
        """The features by name, those of `FEATURES` that this model has."""
        single = {str(name): self.class_tokens[:, i] for i, name in enumerate(MODALITIES)}
        if self.T is None:
            return {"U": self.U, "G": self.G, **single}
        vehicles = torch.cat([self.G, self.T, self.T, self.T], dim=1)
        return {"U": self.U, "G": self.G, "T": self.T, **single, "GTTT": vehicles}


class IdentityHead(nn.Module):
    """BNNeck (Luo et al. 2019): batch norm with a frozen bias, then a linear classifier without bias.

    The paper mentions neither; both come from the released code.

    Args:
        width: Width of the feature.
        identities: Training identities.
        neck: Whether to build the batch norm.
    """

    def __init__(self, width: int, identities: int, neck: bool = True) -> None:
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        if neck:
            self.norm = nn.BatchNorm1d(width)
            self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature: Tensor) -> Tensor:
        """Feature `(B, width)` to logits `(B, identities)`."""
        return self.classifier(self.norm(feature))


class STMI(nn.Module):
    """The network of figure 3.

    Without STR, the nodes of CHI are the patch tokens of the three modalities and T. Without STR and CHI
    there is nothing to fuse: U is G, the baseline of Table 3. Without CHI, H' is H. Without text, T is no
    query, no node and no feature, and U depends on the images alone.

    Args:
        config: Modules and their options.
        clip: Pretrained towers; the weights of the image tower are copied.
        identities: Number of training identities, for the heads.
        cameras: Number of cameras of the data set, for the camera embedding.
        seed: Seed of the initial weights that do not come from CLIP.

    Raises:
        ValueError: The image is not a whole number of patches, the heads do not divide the width, or a list
            of p does not have one number for each layer.
    """

    perturbation: Tensor

    def __init__(
        self, config: ModelConfig, clip: LoadedClip, identities: int, cameras: int, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.patch_size = clip.model.visual.conv1.kernel_size[0]
        self.grid = token_grid(config, self.patch_size)
        width = clip.embed_dim
        patches = self.grid[0] * self.grid[1]
        texts = int(config.text.enabled)
        if config.str.enabled:
            self.nodes = len(MODALITIES) * (config.str.tokens + texts)
        else:
            self.nodes = len(MODALITIES) * patches + texts
        self.fuses = fuses(config)

        with keyed_random.seeded_construction(seed, "initial_weights", "image_tower"):
            self.image_tower = ImageTower(
                clip, config.clip, self.grid, config.sfm, cameras if config.camera_embedding else 0
            )
        probability = feature_modulation.perturbation_probability(config.sfm, len(self.image_tower.blocks))
        self.perturbs = config.sfm.enabled and config.sfm.perturbs
        self.register_buffer("perturbation", probability, persistent=False)
        self.text_tower = TextTower(clip) if config.text.fine_tune else None
        self.reallocation = nn.ModuleDict()
        for name in MODALITIES if config.str.enabled and self.fuses else ():
            with keyed_random.seeded_construction(seed, "initial_weights", "str", name):
                self.reallocation[name] = TokenReallocation(width, config.str)
        with keyed_random.seeded_construction(seed, "initial_weights", "chi"):
            self.interaction = build_interaction(self.nodes, width, config.str.heads, config.chi)
        self.incidence: IncidenceRule | None = None
        if config.chi.enabled and config.chi.mixer == "hypergraph":
            # STR appends the text token to the tokens of each modality.
            has_text_copies = config.str.enabled and config.text.enabled
            self.incidence = IncidenceRule(config.chi, self.nodes, has_text_copies)
        with keyed_random.seeded_construction(seed, "initial_weights", "fusion"):
            self.fusion = ClassTokenFusion(width, config.fusion) if self.fuses else None
        self.heads = nn.ModuleDict()
        for feature in trained_features(config):
            times = 1 if feature == "T" or feature in MODALITIES else len(MODALITIES)
            with keyed_random.seeded_construction(seed, "initial_weights", "head", feature):
                self.heads[feature] = IdentityHead(times * width, identities, config.neck == "batch_norm")

    def checkpoint_activations(self) -> None:
        """Keep only the tokens between the towers' layers; the backward pass computes the rest again.

        Chen et al. 2016, "Training deep nets with sublinear memory cost": less memory, the same gradients.
        """
        self.image_tower.checkpoints_activations = True
        if self.text_tower is not None:
            self.text_tower.clip.transformer.grad_checkpointing = True

    def random_draws(self, seed: int, epoch: int, step: int, batch: int, rows: slice) -> RandomDraws:
        """The random numbers of a training step for some rows of the global batch.

        Args:
            seed: The run's seed.
            epoch: Epoch number.
            step: Step within the epoch.
            batch: Size of the global batch.
            rows: The wanted rows. The draws of a row do not depend on which other rows are wanted.
        """
        is_per_layer = self.config.sfm.perturbation_draw == "layer_and_modality"
        layers, modalities = (len(self.image_tower.blocks), len(MODALITIES)) if is_per_layer else (1, 1)
        shape = (batch, layers, modalities, self.grid[0] * self.grid[1])
        device = self.image_tower.proj.device

        def draw(purpose: str, shape: tuple[int, ...]) -> Tensor:
            uniforms = keyed_random.generator(seed, purpose, epoch, step).random(shape, dtype="float32")
            return torch.from_numpy(uniforms[rows]).to(device)

        drops = self.fusion is not None and self.config.fusion.dropout > 0
        fusion = (batch, len(MODALITIES), self.nodes + self.image_tower.proj.shape[1])
        return RandomDraws(
            perturbation=draw("perturbation", shape).transpose(0, 1) if self.perturbs else None,
            fusion=draw("fusion_dropout", fusion) if drops else None,
        )

    def forward(self, batch: ModelInput, draws: RandomDraws | None = None) -> Features:
        """Features of a batch; `draws` are given in training only."""
        count, modalities = batch.images.shape[:2]
        foreground = None
        if self.config.sfm.enabled:
            mask = feature_modulation.token_mask(batch.foreground, self.config.sfm.mask_threshold)
            foreground = mask[None, :, None]
            if draws is not None and draws.perturbation is not None:
                foreground = feature_modulation.perturb(foreground, self.perturbation, draws.perturbation)
            foreground = foreground.expand(-1, -1, modalities, -1).flatten(1, 2)
        # The modalities share the tower, so they pass it as one batch.
        camera_id = batch.camera_id.repeat_interleave(modalities)
        tokens = self.image_tower(batch.images.flatten(0, 1), foreground, camera_id)
        tokens = tokens.unflatten(0, (count, modalities))
        class_tokens = tokens[:, :, 0]
        text = self._text(batch)
        fused, hypergraph = self._fuse(class_tokens, tokens[:, :, 1:], text, draws)
        return Features(
            U=at_least_float32(fused.flatten(1)),
            G=at_least_float32(class_tokens.flatten(1)),
            T=None if text is None else at_least_float32(text),
            class_tokens=at_least_float32(class_tokens),
            hypergraph=hypergraph,
        )

    def logits(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Identity logits of each trained feature, `(B, identities)`."""
        return {name: head(features[name]) for name, head in self.heads.items()}

    def _text(self, batch: ModelInput) -> Tensor | None:
        if not self.config.text.enabled:
            return None
        if self.text_tower is None:
            return batch.text
        if batch.caption is None:
            raise ValueError(
                "the model trains its text tower (text.fine_tune), but the batch has no captions"
            )
        return self.text_tower(batch.caption)

    def _fuse(
        self, class_tokens: Tensor, patches: Tensor, text: Tensor | None, draws: RandomDraws | None
    ) -> tuple[Tensor, Hypergraph | None]:
        """Semantic tokens, their concatenation H of equation 14, CHI and fusion: U, and the hypergraphs."""
        if self.fusion is None:
            return class_tokens, None
        if self.reallocation:
            semantic = [self.reallocation[name](patches[:, i], text) for i, name in enumerate(MODALITIES)]
        else:
            semantic = [patches.flatten(1, 2)]
            if text is not None:
                semantic.append(text[:, None].to(patches.dtype))
        nodes, hypergraph = torch.cat(semantic, dim=1), None
        if self.incidence is not None and self.interaction is not None:
            hypergraph = self.incidence(nodes)
            nodes = self.interaction(nodes, hypergraph.incidence)
        elif self.interaction is not None:
            nodes = self.interaction(nodes)
        return self.fusion(class_tokens, nodes, None if draws is None else draws.fusion), hypergraph


def fuses(config: ModelConfig) -> bool:
    """Whether the class tokens are fused with semantic tokens; U is G where they are not."""
    concatenates = not config.chi.enabled and config.fusion.without_chi == "concatenation"
    return not concatenates and (config.str.enabled or config.chi.enabled)


def trained_features(config: ModelConfig) -> list[str]:
    """Names of the features that have losses."""
    names = ["U"] if fuses(config) else []
    names += map(str, MODALITIES) if config.separate_modality_heads else ["G"]
    return [*names, "T"] if config.text.enabled else names


def token_grid(config: ModelConfig, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patch tokens.

    Raises:
        ValueError: The image is not a whole number of patches.
    """
    height, width = config.image.height, config.image.width
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"model.image={height}x{width} is not a whole number of {patch_size}x{patch_size} patches; the "
            f"next smaller size is {height // patch_size * patch_size}x{width // patch_size * patch_size}"
        )
    return height // patch_size, width // patch_size
