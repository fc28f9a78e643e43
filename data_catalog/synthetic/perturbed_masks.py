"""True masks, and masks that are wrong in a known way."""

import numpy as np

from data_catalog.synthetic.synthetic_settings import MasksFrom


def perturb(mask: np.ndarray, how: MasksFrom) -> np.ndarray:
    """A mask with a known fault.

    Args:
        mask: The true one, uint8 (height, width) of 0 and 1.
        how: `exact`; `eroded` or `dilated`, by 1/32 of the height in every direction; or `shifted` to the
            right by 1/8 of the width.

    Raises:
        ValueError: It is `grabcut`, which is made of images.
    """
    import cv2  # noqa: PLC0415 - takes time, and few data sets need it

    height, width = mask.shape
    reach = max(1, round(height / 32))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    match how:
        case "exact":
            return mask
        case "eroded":
            return np.asarray(cv2.erode(mask, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0))
        case "dilated":
            return np.asarray(cv2.dilate(mask, disc))
        case "shifted":
            offset = max(1, round(width / 8))
            return np.pad(mask, ((0, 0), (offset, 0)))[:, :width]
        case _:
            raise ValueError(f"masks are {how!r}: expected exact, eroded, dilated or shifted.")
