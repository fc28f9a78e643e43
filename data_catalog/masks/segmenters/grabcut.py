"""GrabCut over three modalities: a segmenter that needs no weights.

Rother, Kolmogorov and Blake 2004, "GrabCut: interactive foreground extraction using iterated graph
cuts", in OpenCV's version, on an image whose three channels are visible brightness, near infrared and
heat. Instead of a user's strokes, ellipses say where the object may be. They are placed where the image is
warm, since people and engines are warmer than the background.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_catalog.masks.mask_table import SegmenterSettings
from data_catalog.records import Record
from data_catalog.samples.images import Mask, Pixels, Segmentation

Ellipse = tuple[float, float]
"""Half axes as shares of the image's height and width."""

_SEED = 20_040_801
_BRIGHTNESS = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Prior(Record):
    """Where the object is expected, around the position that is found for it."""

    body: Ellipse
    """Compared with its surroundings to find the position."""
    core: Ellipse
    """Foreground for certain."""
    likely: Ellipse
    """Foreground until the cut says otherwise."""
    reach: Ellipse
    """Outside it all is background."""


class GrabCutSettings(SegmenterSettings):
    """GrabCut's settings. The defaults were chosen on validation identities of the synthetic data set."""

    segmenter: Literal["grabcut"] = "grabcut"
    upright: Prior = Prior(body=(0.4, 0.2), core=(0.4, 0.07), likely=(0.45, 0.2), reach=(0.54, 0.36))
    """Prior in images that are taller than wide."""
    lying: Prior = Prior(body=(0.33, 0.4), core=(0.22, 0.33), likely=(0.3, 0.4), reach=(0.47, 0.53))
    """Prior in the others."""
    contrast: tuple[float, float, float] = (0.3, 0.3, 1.0)
    """How much each modality counts: its contrast is scaled by this, around grey."""
    search: float = Field(0.2, ge=0, le=0.5)
    """How far to the side of the centre the object is looked for, as a share of the width."""
    pull: float = Field(32.0, ge=0)
    """Grey levels of heat by which a position must exceed the centre, per image width of distance."""
    iterations: int = Field(2, ge=1, le=20)

    cpus_per_actor: ClassVar[float] = 1
    """One, so that the clusters of the colour models are the same from run to run."""

    def build(self) -> "GrabCutSegmenter":
        """The segmenter."""
        return GrabCutSegmenter(self)


class GrabCutSegmenter:
    """Segments samples one by one; the same images give the same mask in any order and on any worker."""

    def __init__(self, settings: GrabCutSettings) -> None:
        self.settings = settings
        # With more threads OpenCV's clustering is not the same from run to run.
        cv2.setNumThreads(1)

    def segment(self, triplets: Sequence[Pixels]) -> list[Segmentation]:
        """One mask for each sample, of its own size.

        The score says how much warmer the mask is than the rest. Of the cheap measures that were tried on the
        synthetic data set, it correlates best with the overlap with the true masks (0.45 to 0.55).

        Args:
            triplets: Images, uint8 `(modality, height, width, channel)` each.
        """
        return [self._segment(triplet) for triplet in triplets]

    def _segment(self, triplet: Pixels) -> Segmentation:
        channels = triplet.astype(np.float32) @ _BRIGHTNESS
        height, width = channels.shape[1:]
        prior = self.settings.upright if height > width else self.settings.lying
        centre = self._find(channels[2], prior.body)
        core = ellipse((height, width), prior.core, centre)
        labels = np.full((height, width), cv2.GC_PR_BGD, dtype=np.uint8)
        likely = ellipse((height, width), prior.likely, centre)
        labels[likely] = cv2.GC_PR_FGD
        labels[~ellipse((height, width), prior.reach, centre)] = cv2.GC_BGD
        labels[core] = cv2.GC_FGD

        weights = np.array(self.settings.contrast, dtype=np.float32)[:, None, None]
        image = np.clip(128 + (channels - 128) * weights, 0, 255).astype(np.uint8)
        image = np.ascontiguousarray(image.transpose(1, 2, 0))
        # The clusters of the colour models start from OpenCV's global generator.
        cv2.setRNGSeed(_SEED)
        try:
            cv2.grabCut(
                image,
                labels,
                (0, 0, width, height),
                np.zeros((1, 65)),
                np.zeros((1, 65)),
                self.settings.iterations,
                cv2.GC_INIT_WITH_MASK,
            )
        except cv2.error:
            # Too few pixels for a model of foreground or background: only the prior is known.
            return Segmentation(mask=likely, score=0.0, source="prior")
        mask = _touching((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD), core)
        return Segmentation(mask=mask, score=_separation(channels[2], mask), source="RGB+NIR+TIR")

    def _find(self, heat: npt.NDArray[np.float32], body: Ellipse) -> float:
        """Where across the image (share of the width) the heat inside the body stands out most."""
        height, width = heat.shape
        best = (-np.inf, 0.5)
        for offset in np.linspace(-self.settings.search, self.settings.search, 9):
            inside = ellipse((height, width), body, 0.5 + offset)
            around = ellipse((height, width), (1.2 * body[0], 1.7 * body[1]), 0.5 + offset) & ~inside
            if not inside.any() or not around.any():
                continue
            warmth = float(heat[inside].mean() - heat[around].mean()) - self.settings.pull * abs(offset)
            best = max(best, (warmth, 0.5 + offset))
        return float(best[1])


def ellipse(size: tuple[int, int], half_axes: Ellipse, centre: float = 0.5) -> Mask:
    """An upright ellipse at half the height, bool `(height, width)`.

    Args:
        size: Height and width.
        half_axes: As shares of height and width.
        centre: Across the image, as a share of the width.
    """
    height, width = size
    rows = (np.arange(height)[:, None] + 0.5) / height - 0.5
    columns = (np.arange(width)[None, :] + 0.5) / width - centre
    return (rows / half_axes[0]) ** 2 + (columns / half_axes[1]) ** 2 <= 1


def _separation(heat: npt.NDArray[np.float32], mask: Mask) -> float:
    """How much warmer the mask is than the rest: x / (1 + x), x the difference of means over spreads."""
    if mask.all() or not mask.any():
        return 0.0
    inside, outside = heat[mask], heat[~mask]
    ratio = max(0.0, float((inside.mean() - outside.mean()) / (inside.std() + outside.std() + 1)))
    return ratio / (1 + ratio)


def _touching(mask: Mask, core: Mask) -> Mask:
    """The connected part of the mask that covers most of the core; bystanders fall away."""
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    if count <= 1:
        return mask
    covered = np.bincount(parts[core], minlength=count)
    covered[0] = -1
    return np.asarray(parts == covered.argmax())
