"""Training augmentation of whole batches on their device: flip, padded crop, random erasing.

A shared geometry moves the three modalities and the mask of a sample together, so that the mask still covers
the same pixels. With geometry per modality, as in the released code, the mask does not move. (In a study of
the embedded benchmark this cost nearly all of SFM's gain.)
"""

from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from stmi import keyed_random
from stmi.config import AugmentConfig
from stmi.modality import MODALITIES

ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 10
PIXEL_STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
}
"""Mean and standard deviation of each channel of pixels from 0 to 1, by the value of `model.pixels`."""


@dataclass(frozen=True)
class Geometry:
    """Random geometry of a global batch; a group is a whole sample, or one modality of it.

    Attributes:
        flip: Whether to flip horizontally, bool `(batch, groups)`.
        offset: Top and left of the crop in the padded image, int `(batch, groups, 2)`.
        erase: Top, left, height and width of the erased rectangle, int `(batch, groups, 4)`; zeros for none.
    """

    flip: np.ndarray
    offset: np.ndarray
    erase: np.ndarray


def sample_geometry(
    config: AugmentConfig, batch: int, image_size: tuple[int, int], seed: int, epoch: int, step: int
) -> Geometry:
    """Sample flips, crops and erasing rectangles for a global batch."""
    random = keyed_random.generator(seed, "augment", epoch, step)
    shape = (batch, 1 if config.geometry == "shared" else len(MODALITIES))
    flip = random.random(shape) < config.flip
    offset = random.integers(0, 2 * config.crop_padding + 1, (*shape, 2))
    return Geometry(flip, offset, _erase_rectangles(random, config, shape, image_size))


def _erase_rectangles(
    random: np.random.Generator, config: AugmentConfig, shape: tuple[int, int], image_size: tuple[int, int]
) -> np.ndarray:
    """Rectangles of Zhong et al. 2020: random area and aspect ratio, the first of some attempts that fits."""
    height, width = image_size
    chosen = random.random(shape) < config.erase
    area = random.uniform(*ERASE_AREA, (*shape, ERASE_ATTEMPTS)) * height * width
    if config.erase_aspect == "uniform":
        aspect = random.uniform(*ERASE_ASPECT, (*shape, ERASE_ATTEMPTS))
    else:
        low, high = np.log(ERASE_ASPECT)
        aspect = np.exp(random.uniform(low, high, (*shape, ERASE_ATTEMPTS)))
    position = random.random((*shape, 2))
    heights = np.rint(np.sqrt(area * aspect)).astype(int)
    widths = np.rint(np.sqrt(area / aspect)).astype(int)
    fits = (heights < height) & (widths < width)
    first = fits.argmax(axis=-1)[..., None]
    used = chosen & fits.any(axis=-1)
    erase_height = np.take_along_axis(heights, first, -1)[..., 0] * used
    erase_width = np.take_along_axis(widths, first, -1)[..., 0] * used
    top = (position[..., 0] * (height - erase_height + 1)).astype(int)
    left = (position[..., 1] * (width - erase_width + 1)).astype(int)
    return np.stack([top, left, erase_height, erase_width], axis=-1)


def augment(
    pixels: Tensor,
    mask: Tensor,
    geometry: Geometry,
    padding: int,
    rows: slice,
    noise_key: tuple[int, int, int],
    statistics: str = "half",
) -> tuple[Tensor, Tensor]:
    """Crop, flip, normalise and erase a worker's rows of the global batch.

    Args:
        pixels: uint8 `(rows, modalities, 3, height, width)`.
        mask: uint8, 255 for foreground, `(rows, height, width)`.
        geometry: That of the global batch.
        padding: Pixels of black (background in the mask) around the image before the crop.
        rows: Which rows of the global batch these are.
        noise_key: Seed, epoch and step of the noise that fills erased rectangles.
        statistics: The same argument of `normalise`.

    Returns:
        Normalised images, float32, and the mask, uint8, moved if the geometry is shared.
    """
    flip, offset, erase = geometry.flip[rows], geometry.offset[rows], geometry.erase[rows]
    groups = flip.shape[1]
    if groups == 1:
        # The mask is one more channel, so that it moves with the pixels.
        moved = _move(torch.cat([pixels.flatten(1, 2), mask[:, None]], dim=1)[:, None], flip, offset, padding)
        mask = moved[:, 0, -1]
        images = normalise(moved[:, 0, :-1].unflatten(1, pixels.shape[1:3]), statistics)
    else:
        images = normalise(_move(pixels, flip, offset, padding), statistics)
    for i, group in np.argwhere(erase[..., 2] > 0):
        top, left, tall, wide = erase[i, group]
        erased = images[i] if groups == 1 else images[i, group : group + 1]
        random = keyed_random.generator(
            noise_key[0], "erase_noise", *noise_key[1:], rows.start + int(i), int(group)
        )
        noise = random.standard_normal((*erased.shape[:2], tall, wide), dtype="float32")
        erased[..., top : top + tall, left : left + wide] = torch.from_numpy(noise).to(images.device)
    return images, mask


def _move(stack: Tensor, flip: np.ndarray, offset: np.ndarray, padding: int) -> Tensor:
    """Pad, crop and flip each group, `(rows, groups, channels, height, width)`."""
    height, width = stack.shape[-2:]
    padded = functional.pad(stack, (padding,) * 4)
    moved = torch.empty_like(stack)
    for i, group in np.ndindex(*flip.shape):
        top, left = offset[i, group]
        moved[i, group] = padded[i, group, :, top : top + height, left : left + width]
    flipped = torch.from_numpy(flip).to(stack.device)[:, :, None, None, None]
    return torch.where(flipped, moved.flip(-1), moved)


def normalise(pixels: Tensor, statistics: str = "half") -> Tensor:
    """Convert pixels to the model's input: (pixel / 255 - mean) / deviation of the channel.

    Args:
        pixels: uint8 `(..., 3, height, width)`.
        statistics: A name in `PIXEL_STATISTICS`.

    Returns:
        float32 of the same shape; for "half" from -1 to 1.
    """
    mean, deviation = (
        torch.tensor(values, device=pixels.device)[:, None, None] for values in PIXEL_STATISTICS[statistics]
    )
    # In place: allocating memory for a batch takes as long as the arithmetic.
    scaled = pixels.to(torch.float32, copy=True).mul_(1 / (255 * deviation))
    return scaled.sub_(mean / deviation)


def patch_foreground(mask: Tensor, patch_size: int) -> Tensor:
    """Share of each patch that the mask covers.

    Args:
        mask: uint8, 255 for foreground, `(batch, height, width)`.
        patch_size: Side of a patch in pixels.

    Returns:
        float32 in [0, 1], patches in row order, `(batch, patches)`.
    """
    return functional.avg_pool2d(mask[:, None].float(), patch_size).flatten(1) / 255
