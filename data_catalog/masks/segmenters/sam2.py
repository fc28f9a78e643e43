"""SAM2 as a segmenter: one prompt, three modalities, three candidates each, the best one kept.

The prompt needs no user: ReID images are cropped around the object, so their centre lies on it and their
border around it. Visible light is dark at night, so every modality is segmented on its own and
`data_catalog.masks.segmenters.mask_choice` chooses.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from data_catalog.errors import CatalogError
from data_catalog.masks.mask_table import SegmenterSettings
from data_catalog.masks.segmenters.mask_choice import Candidate, ChoiceSettings, choose
from data_catalog.masks.segmenters.sam2_checkpoint import SAM2_MODELS, check_checkpoint, load_sam2_model
from data_catalog.samples.images import Pixels, Segmentation
from stmi.config import LARGEST_COUNT
from stmi.modality import MODALITIES

Prompt = Literal["point", "box", "both"]

_STRIDES = (4, 8, 16)
"""Strides of the three feature maps that SAM2's mask decoder reads."""


class Sam2Settings(SegmenterSettings):
    """SAM2's settings; made by `sam2_settings`, which checks the checkpoint first."""

    segmenter: Literal["sam2"] = "sam2"
    model: str = "sam2.1_hiera_l"
    checkpoint: Path = Field(exclude=True)
    """Where the weights lie, for every worker. What they are is said by `checkpoint_sha256`."""
    checkpoint_sha256: str
    prompt: Prompt = "point"
    """The centre of the image, a box just within its border, or both."""
    box_margin: float = Field(0.04, ge=0, lt=0.5)
    """Distance of the box from the border, as a share of height and width."""
    image_size: int = Field(1024, ge=64, le=2048, multiple_of=32)
    """Side of the square that images are resized to, pixels. 1,024 is what SAM2 was trained with; 512 is a
    quarter of the computation."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    choice: ChoiceSettings = ChoiceSettings()
    overrides: tuple[str, ...] = ()
    """Hydra overrides of the model's configuration, for weights of another shape than the published."""
    images_per_batch: int = Field(6, ge=1, le=LARGEST_COUNT, exclude=True)
    """Images that are encoded at once; decides memory and speed, and masks only within rounding."""

    gpus_per_actor: ClassVar[float] = 1
    cpus_per_actor: ClassVar[float] = 4
    """Without a GPU. A model on every CPU would fill a machine's memory."""

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str) -> str:
        if model not in SAM2_MODELS:
            raise ValueError(f"is not known; use one of {', '.join(SAM2_MODELS)}")
        return model

    def build(self) -> "Sam2Segmenter":
        """The segmenter, on a GPU where the process sees one.

        Raises:
            CatalogError: If the checkpoint is not there, or not the one that was checked.
        """
        return Sam2Segmenter(self)


def sam2_settings(checkpoint: str | Path, **settings: Any) -> Sam2Settings:
    """Settings of SAM2 with a checkpoint that was found to fit.

    Args:
        checkpoint: The .pt file.
        **settings: Fields of Sam2Settings.

    Raises:
        CatalogError: If the file is missing, is not a checkpoint, or does not fit the model.
        pydantic.ValidationError: If a setting is impossible.
    """
    path = Path(checkpoint).resolve()
    unchecked = Sam2Settings(checkpoint=path, checkpoint_sha256="", **settings)
    sha256 = check_checkpoint(path, unchecked.model, unchecked.image_size, unchecked.overrides)
    return unchecked.model_copy(update={"checkpoint_sha256": sha256})


class Sam2Segmenter:
    """Holds one SAM2; images are encoded in batches, prompts answered one by one."""

    def __init__(self, settings: Sam2Settings) -> None:
        from sam2.sam2_image_predictor import SAM2ImagePredictor  # noqa: PLC0415

        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_sam2_model(
            settings.checkpoint,
            settings.checkpoint_sha256,
            settings.model,
            settings.image_size,
            settings.overrides,
        )
        self.predictor = SAM2ImagePredictor(model.to(self.device))
        # The predictor assumes the feature maps of a 1,024-pixel image, whatever the model's image size.
        self.predictor._bb_feat_sizes = [(settings.image_size // stride,) * 2 for stride in _STRIDES]

    def segment(self, triplets: Sequence[Pixels]) -> list[Segmentation]:
        """One mask for each sample, of its own size; its score is that of `mask_choice.candidate_score`.

        Args:
            triplets: Images, uint8 `(modality, height, width, channel)` each.
        """
        images = (image for triplet in triplets for image in triplet)
        candidates_by_image = self._candidates(images)
        found = []
        for _ in triplets:
            candidates = [
                Candidate(mask, iou, source.value)
                for source in MODALITIES
                for mask, iou in next(candidates_by_image)
            ]
            found.append(choose(candidates, self.settings.choice))
        return found

    def _candidates(self, images: Iterator[Pixels]) -> Iterator[list[tuple[Any, float]]]:
        """Three masks and their predicted IoU, for each image."""
        while batch := list(islice(images, self.settings.images_per_batch)):
            points, labels, boxes = self._prompts(batch)
            try:
                with torch.inference_mode(), self._autocast():
                    self.predictor.set_image_batch(batch)
                    masks, ious, _ = self.predictor.predict_batch(points, labels, boxes)
            except torch.OutOfMemoryError as error:
                raise CatalogError(
                    f"SAM2 has too little memory for {self.settings.images_per_batch} images of "
                    f"{self.settings.image_size} pixels at once ({error}); lower --images-per-batch or "
                    "--image-size. Shards that are complete are kept"
                ) from None
            for image_masks, image_ious in zip(masks, ious, strict=True):
                yield [(mask > 0, float(iou)) for mask, iou in zip(image_masks, image_ious, strict=True)]

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _prompts(
        self, images: Sequence[Pixels]
    ) -> tuple[list[Any] | None, list[Any] | None, list[Any] | None]:
        """Points `(1, 2)` as (x, y), their labels `(1,)` and boxes `(4,)` as (x, y, x, y), in pixels."""
        sizes = [np.array([image.shape[1], image.shape[0]], dtype=np.float32) for image in images]
        margin = self.settings.box_margin
        boxes = [np.concatenate([size * margin, size * (1 - margin)]) for size in sizes]
        if self.settings.prompt == "box":
            return None, None, boxes
        points = [size[None] / 2 for size in sizes]
        labels = [np.ones(1, dtype=np.int32) for _ in sizes]
        return points, labels, boxes if self.settings.prompt == "both" else None
