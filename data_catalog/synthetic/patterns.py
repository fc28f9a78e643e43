"""Patterns of cloth and paint."""

from collections.abc import Callable, Mapping

import numpy as np

from data_catalog.synthetic.canvas import Brush, Region

Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _odd(steps: np.ndarray) -> np.ndarray:
    return np.floor(steps) % 2 == 1


_PATTERNS: Mapping[str, Pattern] = {
    "plain": lambda u, v: (u < v) & (u > v),
    "hoops": lambda u, v: _odd(2.0 * v + 0.0 * u),
    "stripes": lambda u, v: _odd(2.0 * u + 0.0 * v),
    "checks": lambda u, v: _odd(u) ^ _odd(v),
    "dots": lambda u, v: _odd(2.0 * u) & _odd(2.0 * v),
    "two halves": lambda u, v: v > 0.0 * u,
    "badge": lambda u, v: (abs(u) < 1.0) & (abs(v + 1.0) < 1.2),
    "sash": lambda u, v: abs(1.3 * u + v) < 1.0,
}
"""Where a pattern shows its second colour; u and v are measured from the middle, in periods."""

PATTERNS: tuple[str, ...] = tuple(_PATTERNS)


def paint_pattern(
    brush: Brush, region: Region, pattern: str, colours: tuple[int, int], middle: float, period: float
) -> None:
    """Replace the first material by the second where the pattern shows it.

    Args:
        brush: What paints.
        region: Where the cloth is; other materials in it stay.
        pattern: One of `PATTERNS`.
        colours: Indices of the two materials.
        middle: Downward coordinate of the middle of the pattern.
        period: Distance after which the pattern repeats, in the figure's units.
    """
    chosen = _PATTERNS[pattern](region.u / period, (region.v - middle) / period)
    brush.recolour(region.where(chosen), {colours[0]: colours[1]})
