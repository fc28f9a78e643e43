"""Samples as a caller gives them: one or a batch, each with images and maybe a mask, a caption, a camera."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stmi.images import ImageSource, Mask, Pixels, Size, foreground_share, read_image, read_mask
from stmi.modality import MODALITIES, Modality

Images = ImageSource | Sequence[ImageSource | None] | None
"""The image or mask of one sample, or those of a batch; None for none."""
Captions = str | Sequence[str | None] | None
Cameras = int | Sequence[int | None] | None

GREY = (Modality.NIR, Modality.TIR)
"""Modalities whose images may have one channel."""


@dataclass(frozen=True)
class RawSamples:
    """Samples before their images are read; every list has one entry a sample, None for what it lacks.

    Attributes:
        images: By modality.
        mask: Foreground masks.
        caption: Texts.
        camera: Numbers of cameras, from 0.
    """

    images: dict[Modality, list[ImageSource | None]]
    mask: list[ImageSource | None]
    caption: list[str | None]
    camera: list[int | None]

    def __len__(self) -> int:
        return len(self.mask)

    @classmethod
    def gather(
        cls,
        images: dict[Modality, Images],
        mask: Images,
        caption: Captions,
        camera: Cameras,
    ) -> "RawSamples":
        """One sample or a batch, by whether the arguments are single values or lists.

        Raises:
            ValueError: Some are single values and some lists, the lists differ in length, or a sample has no
                image; names the argument and the number of the sample.
        """
        by_name = {str(name).lower(): _listed(value, 3) for name, value in images.items()}
        by_name |= {"mask": _listed(mask, 2), "caption": _listed(caption), "camera": _listed(camera)}
        given = {name: values for name, values in by_name.items() if values is not None}
        lengths = {name: None if is_one else len(values) for name, (values, is_one) in given.items()}
        if not any(str(name).lower() in given for name in MODALITIES):
            raise ValueError("no images: give at least one of rgb, nir and tir")
        if len(set(lengths.values())) > 1:
            shown = (f"{name} {'one' if n is None else f'a list of {n}'}" for name, n in lengths.items())
            raise ValueError(
                f"expected one value of each, or lists of one length; there are {', '.join(shown)}"
            )
        count = len(next(iter(given.values()))[0])
        if count == 0:
            raise ValueError("the lists are empty: give at least one sample")

        def column(name: str) -> list[Any]:
            return given[name][0] if name in given else [None] * count

        samples = cls(
            {name: column(str(name).lower()) for name in MODALITIES},
            *(column(name) for name in ("mask", "caption", "camera")),
        )
        for row in range(count):
            if all(samples.images[name][row] is None for name in MODALITIES):
                raise ValueError(f"sample {row} has no image: give at least one of rgb, nir and tir")
        _check_values("caption", samples.caption, str)
        _check_values("camera", samples.camera, int | np.integer)
        return samples

    def read(self, row: int, size: Size) -> tuple[Pixels, Pixels, npt.NDArray[np.bool_]]:
        """Images and mask of a sample at the model's size.

        Args:
            row: Number of the sample.
            size: Height and width.

        Returns:
            Pixels uint8 `(modality, channel, height, width)`, zeros where there is no image; share of
            foreground uint8 `(height, width)`, 255 everywhere without a mask; which modalities there are,
            `(modality,)`.

        Raises:
            ValueError: An image or the mask cannot be used; names the argument and the sample.
        """
        pixels = np.zeros((len(MODALITIES), 3, *size), dtype=np.uint8)
        sizes = [size]
        for i, name in enumerate(MODALITIES):
            if (source := self.images[name][row]) is not None:
                try:
                    image, own = read_image(source, size, grey=name in GREY)
                except ValueError as error:
                    raise ValueError(f"{str(name).lower()}[{row}] {error}") from None
                pixels[i] = image.transpose(2, 0, 1)
                sizes.append(own)
        is_there = np.array([self.images[name][row] is not None for name in MODALITIES])
        if (given := self.mask[row]) is None:
            return pixels, np.full(size, 255, dtype=np.uint8), is_there
        try:
            mask = _fitting(read_mask(given), sizes)
        except ValueError as error:
            raise ValueError(f"mask[{row}] {error}") from None
        return pixels, foreground_share(mask, size), is_there


def _listed(given: Any, dimensions: int | None = None) -> tuple[list[Any], bool] | None:
    """The values of an argument, and whether it is of one sample; None where it is not given.

    Args:
        given: The argument.
        dimensions: Those of an array of one sample.
    """
    if given is None:
        return None
    if isinstance(given, np.ndarray):
        is_batch = dimensions is None or given.ndim > dimensions
    else:
        is_batch = isinstance(given, list | tuple)
    return (list(given), False) if is_batch else ([given], True)


def _check_values(name: str, values: list[Any], kind: Any) -> None:
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, kind):
            wanted = "text" if kind is str else "a whole number from 0"
            raise ValueError(f"{name}[{row}] is {value!r}, expected {wanted}, or None")


def _fitting(mask: Mask, sizes: list[Size]) -> Mask:
    if mask.shape not in sizes:
        expected = " or ".join(dict.fromkeys(f"{height}x{width}" for height, width in sizes[1:]))
        raise ValueError(
            f"is {mask.shape[0]}x{mask.shape[1]} (height x width), expected {expected} as its image"
        )
    return mask
