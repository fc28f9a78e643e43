"""Chooses one of several masks of a sample: the best over modalities and candidates.

A promptable segmenter answers a point with three masks (a part, a larger part, the whole), in each of the
three modalities. The best mask is that of the whole object, in the modality that shows it best. So the IoU
that the segmenter predicts is combined with two facts about cropped images: about which share of the image
the object covers, and that it is in the centre.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from data_catalog.records import Record
from data_catalog.samples.images import Mask, Segmentation

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Candidate:
    """One proposed mask of a sample.

    Attributes:
        mask: Bool `(height, width)`, true on the object.
        predicted_iou: Overlap with the truth as the segmenter itself expects it; clipped to 0 to 1.
        source: Modality that was segmented.
    """

    mask: Mask
    predicted_iou: float
    source: str


class ChoiceSettings(Record):
    """How candidates are scored; the formula is that of `candidate_score`.

    Area and centre do not rank plausible masks, they only rule out parts, backgrounds and bystanders: a prior
    with one best value would put a worse mask of that size before a better one. The defaults are wide ranges
    set by hand, from how people and vehicles stand in cropped images; no experiment that can be repeated here
    chose them.
    """

    upright_area: tuple[Share, Share] = (0.2, 0.5)
    """Least and largest share of an image that is taller than wide which the object covers: a person."""
    lying_area: tuple[Share, Share] = (0.2, 0.8)
    """The same shares in the other images: a vehicle."""
    area_spread: float = Field(0.3, gt=0)
    """How fast a mask outside of them loses: a standard deviation of the natural logarithm of its area."""
    centre_radius: float = Field(0.2, ge=0)
    """Distance of the mask's centroid from the image's centre that costs nothing, in shares of height and
    width."""
    centre_spread: float = Field(0.1, gt=0)
    """How fast a mask further out loses: a standard deviation of the distance."""
    iou_weight: float = Field(1.0, ge=0)
    area_weight: float = Field(1.0, ge=0)
    centre_weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _check_areas(self) -> Self:
        for name in ("upright_area", "lying_area"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(f"{name} is {(least, largest)}: expected the least share first")
        if self.iou_weight + self.area_weight + self.centre_weight == 0:
            raise ValueError("iou_weight, area_weight and centre_weight are all 0: give one of them more")
        return self


def candidate_score(candidate: Candidate, settings: ChoiceSettings) -> float:
    """How good a candidate looks, 0 to 1: a weighted geometric mean of three terms that are 0 to 1.

        score = (q^wq * a^wa * c^wc) ^ (1 / (wq + wa + wc))
        q = predicted IoU
        a = exp(-(max(ln(least / area), ln(area / largest), 0) / area spread)^2 / 2)
        c = exp(-(max(distance - radius, 0) / centre spread)^2 / 2)

    `area` is the mask's share of the image, `distance` that of its centroid from the image's centre, with
    rows in shares of the height and columns in shares of the width. An empty mask scores 0. It is a product
    because a candidate is as good as its worst term.
    """
    height, width = candidate.mask.shape
    area = float(candidate.mask.mean())
    quality = min(max(candidate.predicted_iou, 0.0), 1.0)
    if area == 0 or not quality > 0:
        return 0.0
    least, largest = settings.upright_area if height > width else settings.lying_area
    rows, columns = np.nonzero(candidate.mask)
    distance = math.hypot(float(rows.mean() + 0.5) / height - 0.5, float(columns.mean() + 0.5) / width - 0.5)
    too_small_or_large = max(math.log(least / area), math.log(area / largest), 0.0) / settings.area_spread
    too_far = max(distance - settings.centre_radius, 0.0) / settings.centre_spread
    logarithm = (
        settings.iou_weight * math.log(quality)
        - settings.area_weight * too_small_or_large**2 / 2
        - settings.centre_weight * too_far**2 / 2
    )
    return math.exp(logarithm / (settings.iou_weight + settings.area_weight + settings.centre_weight))


def choose(candidates: Sequence[Candidate], settings: ChoiceSettings) -> Segmentation:
    """The candidate of the highest score; of equal scores the earlier one.

    Args:
        candidates: All candidates of one sample, at least one.
        settings: How they are scored.
    """
    scores = [candidate_score(candidate, settings) for candidate in candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    chosen = candidates[best]
    return Segmentation(mask=chosen.mask, score=scores[best], source=chosen.source)
