"""Words and images of the questions to a language model. Both enter the digests of kept answers."""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_catalog.captions.predicted_attributes import JOINT, SOURCES, UNKNOWN, Predictions
from data_catalog.captions.sentences import ABSENT, TEMPLATES
from data_catalog.samples.images import (
    IMAGE_COLUMNS,
    SIDE_BY_SIDE_COLUMN,
    blank_like,
    decode_image,
    is_upright,
)
from stmi.modality import MODALITIES

_JPEG = b"\xff\xd8"
"""Begins a JPEG file."""

PROMPTS_VERSION = 1
"""Raised when the words of a question change, so that captions are written anew."""

ROW_COLUMNS = ("sample_id", *IMAGE_COLUMNS, SIDE_BY_SIDE_COLUMN)
"""Columns of the samples table that `prompt_images` needs, and the sample's name."""

_SHOWN = {
    "RGB": "a visible-light image",
    "NIR": "a near-infrared image; it shows no colours",
    "TIR": "a thermal-infrared image; it shows warmth and no colours",
    JOINT: "three images of the same moment side by side: visible light, near infrared, thermal infrared; "
    "only the first shows colours",
}
_READER = (
    "You describe images of surveillance cameras for a search system. Each shows one {kind}, the one in the "
    "middle. Images may be small, dark or blurred. You report what can be seen and do not guess beyond it."
)
_DISCREET = (
    " Never read, use or repeat licence plates, names, numbers, slogans or any other text in the image."
)
_CHOOSER = (
    "You merge what several readers saw in images of one {kind} into one description. The readers looked at "
    "the visible-light image (RGB), the near-infrared image (NIR), the thermal-infrared image (TIR), and at "
    "the three side by side (JOINT). Each gave a value and a confidence from 0 to 1 for each attribute."
)


def prediction_instructions(kind: str, redact: bool) -> str:
    """The system's message of step one, for a kind of object; with `redact` it forbids reading text."""
    return _READER.format(kind=kind) + (_DISCREET if redact else "")


def choice_instructions(kind: str) -> str:
    """The system's message of step two, for a kind of object."""
    return _CHOOSER.format(kind=kind)


def prediction_text(source: str, attributes: Mapping[str, Sequence[str]]) -> str:
    """The user's message of step one.

    Args:
        source: What the image shows.
        attributes: Attribute to its values.
    """
    listed = "\n".join(f"- {name}: {', '.join(values)}" for name, values in attributes.items())
    return (
        f"This is {_SHOWN[source]}.\n"
        "For every attribute give the value that fits best, and as confidence from 0 (a guess) to 1 "
        f'(plain to see) how sure you are. "{ABSENT}" means that you see that there is none. Where the '
        f'image does not show it, the value is "{UNKNOWN}".\nAttributes and their values:\n{listed}'
    )


def choice_text(kind: str, names: Iterable[str], predictions: Predictions) -> str:
    """The user's message of step two.

    Args:
        kind: Kind of object, which has a template.
        names: Attributes to choose values of.
        predictions: What each source shows.
    """
    triplets = [
        f"- {name}: "
        + "; ".join(
            f"{source} {found.value} {float(found.confidence):.2f}"
            for source in SOURCES
            if (found := predictions.get(source, {}).get(name)) is not None
        )
        for name in names
    ]
    template = TEMPLATES[kind]
    phrases = [template.subject, *(" ".join((word, *listed)) for word, listed in template.clauses)]
    return (
        "What they saw (attribute: reader value confidence; ...):\n"
        + "\n".join(triplets)
        + f'\n\nThe description is filled into this template: "A photo of {", ".join(phrases)}"\n'
        "For every attribute choose the most reliable value: weigh the confidences, how many readers "
        "agree, and which image shows the attribute best (colours only the visible-light one), and "
        "let the values fit together. Choose only values that a reader gave. Where no reader gave "
        f'one, and only there, answer "{UNKNOWN}".'
    )


@dataclass(frozen=True)
class PromptImage:
    """An image as a question shows it.

    Attributes:
        files: Files of images that are shown side by side; one as a rule.
        part: Which third of the one file is shown, from the left; None for all of it.
    """

    files: tuple[bytes, ...]
    part: int | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of what is shown, over the original bytes: joining and cutting them costs no decoding."""
        sha256 = hashlib.sha256(f"{self.part}\0".encode())
        for data in self.files:
            sha256.update(len(data).to_bytes(8, "big") + data)
        if not all(map(is_upright, self.files)):
            # Earlier versions showed such a file as it lies.
            sha256.update(b"upright")
        return sha256.hexdigest()

    def jpeg(self) -> bytes:
        """The image as one JPEG file."""
        [first, *others] = self.files
        if not others and self.part is None and first.startswith(_JPEG) and is_upright(first):
            return first
        pixels = np.concatenate([decode_image(data) for data in self.files], axis=1)
        if self.part is not None:
            width = pixels.shape[1] // len(MODALITIES)
            pixels = pixels[:, self.part * width : (self.part + 1) * width]
        sink = io.BytesIO()
        # A second compression must not blur what is small already.
        Image.fromarray(pixels).save(sink, format="JPEG", quality=95, subsampling=0)
        return sink.getvalue()


def prompt_images(row: Mapping[str, Any]) -> dict[str, PromptImage]:
    """Source of predictions to the image that shows it, if there is one; the one that shows most is first.

    Args:
        row: The sample, with ROW_COLUMNS.
    """
    joined = row[SIDE_BY_SIDE_COLUMN]
    if joined is not None:
        alone = {modality.value: PromptImage((joined,), number) for number, modality in enumerate(MODALITIES)}
        return {JOINT: PromptImage((joined,)), **alone}
    found = dict(zip(MODALITIES, (row[column] for column in IMAGE_COLUMNS), strict=True))
    there = {modality.value: data for modality, data in found.items() if data is not None}
    blank = blank_like(next(iter(there.values()))) if len(there) < len(found) else b""
    return {
        JOINT: PromptImage(tuple(there.get(modality, blank) for modality in found)),
        **{name: PromptImage((data,)) for name, data in there.items()},
    }
