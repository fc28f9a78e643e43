"""A segmenter: foreground is what is warm in the thermal image."""

from collections.abc import Sequence

from pydantic import Field

from data_catalog.masks.mask_table import SegmenterSettings
from data_catalog.samples.images import Pixels, Segmentation


class WarmSettings(SegmenterSettings):
    """Part of the table's key, with the class's name and version."""

    version = 1  # raised when the code gives other masks
    level: float = Field(0.5, ge=0, le=1, description="Threshold between the coldest and the warmest pixel.")

    def build(self) -> "WarmSegmenter":
        return WarmSegmenter(self.level)


class WarmSegmenter:
    """Lives in an actor of Ray Data: a model is loaded once, in __init__."""

    def __init__(self, level: float) -> None:
        self.level = level

    def segment(self, triplets: Sequence[Pixels]) -> list[Segmentation]:
        found = []
        for _, _, thermal in triplets:  # RGB, NIR, TIR: uint8 (height, width, 3) each
            heat = thermal.mean(axis=2)
            coldest, warmest = heat.min(), heat.max()
            mask = heat > coldest + self.level * (warmest - coldest)
            found.append(Segmentation(mask, score=float(warmest - coldest) / 255, source="TIR"))
        return found
