"""A captioner: a template filled with what the pixels show."""

from collections.abc import Sequence
from typing import Literal

from data_catalog.captions.image_captioner import CaptionerSettings
from data_catalog.samples.images import Pixels


class TemplateSettings(CaptionerSettings):
    """Part of the table's key, with the class's name and version."""

    version = 1  # raised when the code writes other captions
    kind: Literal["person", "vehicle"] = "person"

    def build(self) -> "TemplateCaptioner":
        return TemplateCaptioner(self.kind)


class TemplateCaptioner:
    """Lives in an actor of Ray Data: a model is loaded once, in __init__."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def caption(self, triplets: Sequence[Pixels]) -> list[str]:
        captions = []
        for visible, _, _ in triplets:  # RGB, NIR, TIR: uint8 (height, width, 3) each
            light = "by night" if visible.mean() < 50 else "by day"
            colour = ("red", "green", "blue")[int(visible.mean(axis=(0, 1)).argmax())]
            captions.append(f"A photo of a {self.kind} {light}, mostly {colour}.")
        return captions
