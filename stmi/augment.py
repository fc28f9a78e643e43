"""Training augmentation of whole batches on their device: flip, padded crop, random erasing.

The geometry is drawn once per sample and moves the three modalities and the mask together, so that
the mask still covers what it covered.

Differs from the released code: there each modality draws its own flip and crop, and the mask stays
behind. (On the embedded benchmark a mask left behind loses nearly all that SFM gains.)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stmi import keyed_random
from stmi.config import AugmentConfig

ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 10


@dataclass(frozen=True)
class Geometry:
    """The draws for a global batch.

    Attributes:
        flip: Whether to mirror, bool `(batch,)`.
        offset: Top and left of the crop in the padded image, int `(batch, 2)`.
        erase: Top, left, height, width of the erased rectangle, zeros for none, int `(batch, 4)`.
    """

    flip: np.ndarray
    offset: np.ndarray
    erase: np.ndarray


def draw_geometry(
    config: AugmentConfig, batch: int, image_size: tuple[int, int], seed: int, epoch: int, step: int
) -> Geometry:
    """Draw flips, crops and erasing rectangles of a global batch."""
    random = keyed_random.generator(seed, "augment", epoch, step)
    flip = random.random(batch) < config.flip
    offset = random.integers(0, 2 * config.crop_padding + 1, (batch, 2))
    return Geometry(flip, offset, _erase_rectangles(random, config.erase, batch, image_size))


def _erase_rectangles(
    random: np.random.Generator, probability: float, batch: int, image_size: tuple[int, int]
) -> np.ndarray:
    """Rectangles of Zhong et al. 2020: a share of the area, an aspect ratio, redrawn until one fits."""
    height, width = image_size
    chosen = random.random(batch) < probability
    area = random.uniform(*ERASE_AREA, (batch, ERASE_ATTEMPTS)) * height * width
    aspect = random.uniform(*ERASE_ASPECT, (batch, ERASE_ATTEMPTS))
    position = random.random((batch, 2))
    heights = np.rint(np.sqrt(area * aspect)).astype(int)
    widths = np.rint(np.sqrt(area / aspect)).astype(int)
    fits = (heights < height) & (widths < width)
    first, rows = fits.argmax(axis=1), np.arange(batch)
    used = chosen & fits.any(axis=1)
    erase_height, erase_width = heights[rows, first] * used, widths[rows, first] * used
    top = (position[:, 0] * (height - erase_height + 1)).astype(int)
    left = (position[:, 1] * (width - erase_width + 1)).astype(int)
    return np.stack([top, left, erase_height, erase_width], axis=1)


def augment(
    pixels: Tensor,
    mask: Tensor,
    geometry: Geometry,
    padding: int,
    rows: slice,
    noise_key: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Move, mirror and erase a worker's rows of the global batch.

    Args:
        pixels: uint8 `(rows, modalities, 3, height, width)`.
        mask: uint8, 255 where all foreground, `(rows, height, width)`.
        geometry: Draws for the global batch.
        padding: Pixels of black (background in the mask) around the image before the crop.
        rows: Which rows of the global batch these are.
        noise_key: Seed, epoch and step of the noise that fills erased rectangles.

    Returns:
        Normalised images (mean 0.5, deviation 0.5), float32, and the moved mask, uint8.
    """
    height, width = mask.shape[-2:]
    # The mask travels as one more channel: what moves the pixels moves it.
    stack = torch.cat([pixels.flatten(1, 2), mask[:, None]], dim=1)
    padded = functional.pad(stack, (padding,) * 4)
    moved = torch.empty_like(stack)
    for i, (top, left) in enumerate(geometry.offset[rows]):
        moved[i] = padded[i, :, top : top + height, left : left + width]
    flip = torch.from_numpy(geometry.flip[rows]).to(stack.device)
    moved = torch.where(flip[:, None, None, None], moved.flip(-1), moved)
    images = normalise(moved[:, :-1].unflatten(1, pixels.shape[1:3]))
    for i, (top, left, tall, wide) in enumerate(geometry.erase[rows]):
        if tall:
            random = keyed_random.generator(noise_key[0], "erase_noise", *noise_key[1:], rows.start + i)
            noise = random.standard_normal((*images.shape[1:3], tall, wide), dtype="float32")
            images[i, ..., top : top + tall, left : left + wide] = torch.from_numpy(noise).to(images.device)
    return images, moved[:, -1]


def normalise(pixels: Tensor) -> Tensor:
    """Pixels uint8 0..255 to float32 -1..1 (mean 0.5, standard deviation 0.5)."""
    return pixels.float() * (2 / 255) - 1


def patch_foreground(mask: Tensor, patch_size: int) -> Tensor:
    """Share of each patch that the mask covers.

    Args:
        mask: uint8, 255 where all foreground, `(batch, height, width)`.
        patch_size: Side of a patch, pixels.

    Returns:
        float32 in [0, 1], patches in row order, `(batch, patches)`.
    """
    return functional.avg_pool2d(mask[:, None].float(), patch_size).flatten(1) / 255
