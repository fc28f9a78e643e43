"""What can be said of any picture."""

import io

import numpy as np
from PIL import Image


def is_cut(png: bytes) -> bool:
    """Whether something reaches the edge of a white picture, where it ends."""
    grey = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    edges = (grey[:2], grey[-2:], grey[:, :2], grey[:, -2:])
    return min(edge.min() for edge in edges) < 200
