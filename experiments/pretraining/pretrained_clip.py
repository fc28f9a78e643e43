"""What a pretraining gives; imports nothing that takes time."""

from data_catalog.records import Record

HELD_OUT = 512
"""Pairs that are not trained on; they measure how often an image retrieves its own sentence."""


class PretrainedClip(Record):
    """A trained CLIP and its accuracy."""

    folder: str
    sha256: str
    """Digest of the file of weights."""
    bytes: int
    """Size of the file of weights."""
    parameters: int
    held_out_accuracy: dict[str, float]
    """Share of held-out images that retrieve their own sentence, by modality."""
    chance: float
    """Accuracy of a random choice."""
    seconds: float
