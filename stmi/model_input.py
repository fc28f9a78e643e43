"""What the model reads: a batch, and the random numbers of a training step.

Shapes below: B batch, M = 3 modalities, N patch tokens, D embedding width.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stmi.modality import MODALITIES, Modality


@dataclass(frozen=True)
class ModelInput:
    """A batch, augmented and on its device.

    Attributes:
        images: Normalised pixels, `(B, M, 3, height, width)`.
        foreground: Share of each patch that the mask covers, in [0, 1], `(B, N)`.
        text: T, the frozen text features, `(B, D)`.
        camera_id: `(B,)`, int64; -1 for a camera that the model was not trained with.
        caption: Token numbers of the captions, `(B, context)`; needed if the model trains its text tower.
    """

    images: Tensor
    foreground: Tensor
    text: Tensor
    camera_id: Tensor
    caption: Tensor | None = None

    def rows(self, rows: slice) -> "ModelInput":
        """Some of its samples."""
        caption = None if self.caption is None else self.caption[rows]
        return ModelInput(
            self.images[rows], self.foreground[rows], self.text[rows], self.camera_id[rows], caption
        )

    def without(self, missing: Collection[Modality]) -> "ModelInput":
        """The same input with the images of the missing modalities replaced by zeros, as in the paper."""
        if not missing:
            return self
        kept = torch.tensor([modality not in missing for modality in MODALITIES], device=self.images.device)
        return replace(self, images=self.images * kept[:, None, None, None])


def zeroed(images: Tensor, missing: Tensor | None) -> Tensor:
    """Normalised images with zeros for those that a sample lacks, as in the paper's evaluation.

    Args:
        images: `(B, M, 3, height, width)`.
        missing: Bool `(B, M)`; None for none.
    """
    return images if missing is None else images.masked_fill(missing[:, :, None, None, None], 0)


@dataclass(frozen=True)
class RandomDraws:
    """Uniform random numbers from [0, 1) of a training step; evaluation has none.

    Attributes:
        perturbation: For the mask perturbation, `(1, B, 1, N)`, or `(layers, B, M, N)` with new draws for
            every layer and modality; None without perturbation.
        fusion: For the fusion's dropout, `(B, M, nodes + D)`; None without dropout.
    """

    perturbation: Tensor | None
    fusion: Tensor | None

    def rows(self, rows: slice) -> "RandomDraws":
        """Those of some of the samples."""
        return RandomDraws(
            perturbation=None if self.perturbation is None else self.perturbation[:, rows],
            fusion=None if self.fusion is None else self.fusion[rows],
        )
