"""The three modalities of a sample, in the one order that every tensor and table uses."""

from enum import StrEnum


class Modality(StrEnum):
    """A spectrum in which a sample was photographed."""

    RGB = "RGB"
    """Visible light."""
    NIR = "NIR"
    """Near infrared."""
    TIR = "TIR"
    """Thermal infrared."""


MODALITIES: tuple[Modality, ...] = tuple(Modality)
"""RGB, NIR, TIR: axis 1 of an image batch `(batch, modality, channel, height, width)`."""
