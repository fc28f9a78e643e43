"""The network as it is exported: from bytes of pixels to U, G and T, with what it reads and nothing else."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_catalog.views.view_reader import View
from experiments.exporting.export_result import ExportedInput
from stmi.config import ModelConfig
from stmi.modality import MODALITIES
from stmi.model import STMI
from stmi.model_input import ModelInput, zeroed
from stmi.trained_run import UNKNOWN_CAMERA
from stmi.training.augment import normalise, patch_foreground


class ExportedNetwork(nn.Module):
    """The network with normalisation, missing modalities and patches of the mask inside; computes in float32.

    Args:
        model: In evaluation mode, on the CPU.
    """

    def __init__(self, model: STMI) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        present: Tensor,
        mask: Tensor | None = None,
        text: Tensor | None = None,
        caption: Tensor | None = None,
        camera: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """U, G and, where the model has it, T, each `(B, width)`; arguments as in `describe_inputs`."""
        model, count = self.model, images.shape[0]
        pixels = zeroed(normalise(images, model.config.pixels), ~present)
        if mask is None:
            foreground = pixels.new_zeros(count, model.grid[0] * model.grid[1])
        else:
            foreground = patch_foreground(mask, model.patch_size)
        if text is None:
            text = pixels.new_zeros(count, model.image_tower.proj.shape[1])
        if camera is None:
            camera = images.new_full((count,), UNKNOWN_CAMERA, dtype=torch.int64)
        features = model(ModelInput(pixels, foreground, text, camera, caption))
        found = {"U": features.U, "G": features.G, "T": features.T}
        # An output that is an input is none to some programs.
        return {name: values.clone() for name, values in found.items() if values is not None}


def describe_inputs(config: ModelConfig, width: int, context: int, cameras: int) -> dict[str, ExportedInput]:
    """The inputs of a network by name: what it reads, and nothing else.

    Args:
        config: Its settings.
        width: Width of the text feature.
        context: Tokens of a caption.
        cameras: How many have a vector; 0 where there is no camera embedding.
    """
    size = (config.image.height, config.image.width)
    inputs = {
        "images": ExportedInput(
            dtype="uint8",
            shape=(len(MODALITIES), 3, *size),
            meaning=f"pixels from 0 to 255 of {', '.join(MODALITIES)}, channels R, G, B, resized (Pillow's "
            "bicubic); a grey image has its channel three times",
        ),
        "present": ExportedInput(
            dtype="bool", shape=(len(MODALITIES),), meaning="false for a missing image, which becomes zeros"
        ),
    }
    if config.sfm.enabled:
        inputs["mask"] = ExportedInput(
            dtype="uint8",
            shape=size,
            meaning="share of foreground of each pixel, 255 for all of it (a mask resized by the mean over "
            "each area, Pillow's box); 255 everywhere where there is no mask",
        )
    if config.text.enabled and config.text.fine_tune:
        inputs["caption"] = ExportedInput(dtype="int64", shape=(context,), meaning="CLIP's token numbers")
    elif config.text.enabled:
        inputs["text"] = ExportedInput(
            dtype="float32",
            shape=(width,),
            meaning="feature of the caption by the run's CLIP, not normalised; zeros without a caption",
        )
    if cameras:
        inputs["camera"] = ExportedInput(
            dtype="int64", shape=(), meaning=f"0 to {cameras - 1}, or -1 for another camera"
        )
    return inputs


def read_inputs(view: View, rows: np.ndarray, captions: Tensor | None, names: list[str]) -> dict[str, Tensor]:
    """The inputs of some rows of a view.

    Args:
        view: The samples.
        rows: Numbers of the rows.
        captions: Token numbers of the view's captions, where the network reads them.
        names: Names of the inputs.
    """
    batch = view.batch(rows)
    missing = np.zeros((len(rows), len(MODALITIES)), bool) if batch.missing is None else batch.missing
    everything: dict[str, Any] = {
        "images": torch.from_numpy(batch.pixels),
        "present": torch.from_numpy(~missing),
        "mask": torch.from_numpy(batch.mask),
        "text": torch.from_numpy(batch.text_feature),
        "caption": None if captions is None else captions[torch.from_numpy(rows)],
        "camera": torch.from_numpy(batch.camera_id.astype(np.int64)),
    }
    return {name: everything[name] for name in names}
