"""Training augmentation of whole batches on their device: flip, padded crop, random erasing.

A shared geometry moves the three modalities and the mask of a sample together, so that the mask still covers
the same pixels. With geometry per modality, as in the released code, the mask does not move. (In a study of
the embedded benchmark this cost nearly all of SFM's gain.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from stmi import keyed_random
from stmi.config import AugmentConfig
from stmi.modality import MODALITIES
from stmi.training import philox

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
    """Random geometry of samples; a group is a whole sample, or one modality of it.

    Attributes:
        flip: Whether to flip horizontally, bool `(samples, groups)`.
        offset: Top and left of the crop in the padded image, int `(samples, groups, 2)`.
        erase: Top, left, height and width of the erased rectangle, int `(samples, groups, 4)`; zeros for
            none.
        row: Row of the sample in its global batch, int `(samples,)`.
        noise_key: Key of the noise that fills its rectangles, two words of 32 bits, int `(samples, 2)`.
    """

    flip: np.ndarray
    offset: np.ndarray
    erase: np.ndarray
    row: np.ndarray
    noise_key: np.ndarray

    def rows(self, rows: slice) -> "Geometry":
        """That of some of the samples."""
        return Geometry(**{name: values[rows] for name, values in vars(self).items()})


def sample_geometry(
    config: AugmentConfig, batch: int, image_size: tuple[int, int], seed: int, epoch: int, step: int
) -> Geometry:
    """Sample flips, crops and erasing rectangles for a global batch."""
    random = keyed_random.generator(seed, "augment", epoch, step)
    shape = (batch, 1 if config.geometry == "shared" else len(MODALITIES))
    return Geometry(
        flip=random.random(shape) < config.flip,
        offset=random.integers(0, 2 * config.crop_padding + 1, (*shape, 2)),
        erase=_erase_rectangles(random, config, shape, image_size),
        row=np.arange(batch),
        noise_key=np.tile(keyed_random.words(seed, "erase_noise", epoch, step), (batch, 1)),
    )


def join_geometries(geometries: Sequence[Geometry]) -> Geometry:
    """That of the samples of all, in order; they may be of different steps."""
    columns = zip(*(vars(one).values() for one in geometries), strict=True)
    return Geometry(*map(np.concatenate, columns))


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
    statistics: str = "half",
) -> tuple[Tensor, Tensor]:
    """Crop, flip, normalise and erase samples.

    Args:
        pixels: uint8 `(samples, modalities, 3, height, width)`.
        mask: uint8, 255 for foreground, `(samples, height, width)`.
        geometry: That of these samples.
        padding: Pixels of black (background in the mask) around the image before the crop.
        statistics: The same argument of `normalise`.

    Returns:
        Normalised images, float32, and the mask, uint8, moved if the geometry is shared.
    """
    flip, offset = geometry.flip, geometry.offset
    if flip.shape[1] == 1:
        # The mask is one more channel, so that it moves with the pixels.
        moved = _move(torch.cat([pixels.flatten(1, 2), mask[:, None]], dim=1)[:, None], flip, offset, padding)
        mask = moved[:, 0, -1]
        images = normalise(moved[:, 0, :-1].unflatten(1, pixels.shape[1:3]), statistics)
    else:
        images = normalise(_move(pixels, flip, offset, padding), statistics)
    _erase(images.view(*flip.shape, -1, *images.shape[-2:]), geometry)
    return images, mask


def _move(stack: Tensor, flip: np.ndarray, offset: np.ndarray, padding: int) -> Tensor:
    """Pad, crop and flip each group, `(rows, groups, channels, height, width)`."""
    (top, left), shape = offset.reshape(-1, 2).T, stack.shape[2:]
    images = functional.pad(stack, (padding,) * 4).flatten(0, 1)
    # A crop is a window of the same shape and strides wherever it begins, so all crops are one selection.
    strides = images.stride()
    windows = images.numel() - sum(
        (size - 1) * stride for size, stride in zip(shape, strides[1:], strict=True)
    )
    begin = np.arange(len(images)) * strides[0] + top * strides[2] + left
    crops = images.as_strided((windows, *shape), (1, *strides[1:])).index_select(
        0, torch.from_numpy(begin).to(stack.device)
    )
    flipped = torch.from_numpy(np.flatnonzero(flip)).to(stack.device)
    crops.index_copy_(0, flipped, crops.index_select(0, flipped).flip(-1))
    return crops.view(stack.shape)


def _erase(images: Tensor, geometry: Geometry) -> None:
    """Fill the erased rectangles with normal noise, in place; the images are those of `_move`.

    The noise of a rectangle is a function of its sample's key and row and of its group, so it does not depend
    on other rectangles.
    """
    sample, group = np.nonzero(geometry.erase[..., 2])
    if not len(sample):
        return
    groups, channels, height, width = images.shape[1:]
    top, left, tall, wide = geometry.erase[sample, group].T
    area = tall * wide
    counters = -(-channels * area // philox.NORMALS_PER_COUNTER)
    first_number = (counters.cumsum() - counters) * philox.NORMALS_PER_COUNTER
    corner = ((sample * groups + group) * channels * height + top) * width + left

    known = [geometry.row[sample], group, *geometry.noise_key[sample].T]
    counter, of_row, of_group, *words = _repeat(counters, known, images.device)
    noise = philox.normals(
        (counter, of_group, of_row, torch.zeros_like(counter)), (words[0], words[1])
    ).flatten()

    pixel, of_corner, of_wide, of_area, of_first = _repeat(
        area, [corner, wide, area, first_number], images.device
    )
    channel = torch.arange(channels, device=images.device)[:, None]
    target = of_corner + pixel // of_wide * width + pixel % of_wide + channel * (height * width)
    number = of_first + pixel + channel * of_area
    images.view(-1).index_copy_(0, target.flatten(), noise.index_select(0, number.flatten()))


def _repeat(times: np.ndarray, facts: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Repeat what is known of each rectangle; the first result numbers its repetitions from 0."""
    known = torch.from_numpy(np.stack([times.cumsum() - times, *facts])).to(device)
    rectangle = torch.repeat_interleave(torch.from_numpy(times).to(device), output_size=int(times.sum()))
    first, *repeated = known.index_select(1, rectangle)
    return [torch.arange(len(rectangle), device=device) - first, *repeated]


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
