"""The images of a prompt: each modality's image of a sample, and the three side by side."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_catalog.captions.predicted_attributes import JOINT
from data_catalog.samples.images import IMAGE_COLUMNS, SIDE_BY_SIDE_COLUMN, decode_image
from stmi.modality import MODALITIES

ROW_COLUMNS = ("sample_id", *IMAGE_COLUMNS, SIDE_BY_SIDE_COLUMN)
"""Columns of the samples table that `prompt_images` needs, and the sample's name."""


@dataclass(frozen=True)
class PromptImage:
    """An image as a question shows it.

    Attributes:
        files: JPEG files that are shown side by side; one as a rule.
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
        return sha256.hexdigest()

    def jpeg(self) -> bytes:
        """The image as one JPEG file."""
        if len(self.files) == 1 and self.part is None:
            return self.files[0]
        pixels = np.concatenate([decode_image(data) for data in self.files], axis=1)
        if self.part is not None:
            width = pixels.shape[1] // len(MODALITIES)
            pixels = pixels[:, self.part * width : (self.part + 1) * width]
        sink = io.BytesIO()
        # A second compression must not blur what is small already.
        Image.fromarray(pixels).save(sink, format="JPEG", quality=95, subsampling=0)
        return sink.getvalue()


def prompt_images(row: Mapping[str, Any]) -> dict[str, PromptImage]:
    """Source of predictions to the image that shows it; the one that shows most comes first.

    Args:
        row: The sample, with ROW_COLUMNS.
    """
    joined = row[SIDE_BY_SIDE_COLUMN]
    files = (joined,) if joined is not None else tuple(row[column] for column in IMAGE_COLUMNS)
    alone = {
        modality.value: PromptImage(files, number) if joined is not None else PromptImage((files[number],))
        for number, modality in enumerate(MODALITIES)
    }
    return {JOINT: PromptImage(files), **alone}
