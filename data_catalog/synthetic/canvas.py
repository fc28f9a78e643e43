"""A map of materials, and a brush that paints shapes on it.

A material is five numbers: its level in red, green, blue, near infrared and thermal infrared. A sample is
painted once, as a map that says which material is where; the five channels of the materials turn it into
three images with the same geometry to the pixel.
"""

import math
from typing import NamedTuple

import numpy as np

Material = tuple[int, int, int, int, int]
"""R, G, B, NIR and TIR, 0 to 255."""

NIR, TIR = 3, 4
FULL_LIGHT = 256
"""The shade of a fully lit surface; lower is darker."""


class Canvas:
    """What has been painted so far.

    Attributes:
        materials: Index into `table`, uint16 (height, width).
        shade: How brightly each pixel is lit, int16 (height, width); 256 is full light.
        table: The materials in use.
    """

    def __init__(self, height: int, width: int) -> None:
        self.materials = np.zeros((height, width), dtype=np.uint16)
        self.shade = np.full((height, width), FULL_LIGHT, dtype=np.int16)
        self.table: list[Material] = []

    def crop(self, top: int, left: int, height: int, width: int) -> "Canvas":
        """A copy of a window of this canvas, to paint on."""
        window = Canvas(0, 0)
        rows, columns = slice(top, top + height), slice(left, left + width)
        window.materials = self.materials[rows, columns].copy()
        window.shade = self.shade[rows, columns].copy()
        window.table = list(self.table)
        return window

    def add(self, material: Material) -> int:
        """Put a material in the table and return its index."""
        self.table.append(material)
        return len(self.table) - 1

    def colours(self) -> np.ndarray:
        """The five channels of every pixel with shade: int32 (height, width, 5), values 0 and up.

        Heat is radiated, not reflected, so shade does not change the thermal channel.
        """
        channels = np.array(self.table, dtype=np.int32).take(self.materials, axis=0)
        channels[..., :TIR] *= self.shade[..., None]
        channels[..., :TIR] >>= 8
        return channels


class Region(NamedTuple):
    """The pixels of a shape: a window of the canvas, and which of its pixels belong to the shape.

    Attributes:
        u: Sideways coordinate of the window's columns, (1, columns).
        v: Downward coordinate of the window's rows, (rows, 1).
        inside: Boolean (rows, columns).
    """

    rows: slice
    columns: slice
    u: np.ndarray
    v: np.ndarray
    inside: np.ndarray

    def where(self, condition: np.ndarray) -> "Region":
        """The part of the region where a condition on u and v holds."""
        return Region(self.rows, self.columns, self.u, self.v, self.inside & condition)


class Brush:
    """Paints shapes whose coordinates are relative to a figure, not to pixels.

    The figure's origin (u=0, v=0) lies at pixel (x, y); one unit is `scale` pixels; u grows to the
    right, or to the left if mirrored; v grows downward. Pixels are compared at their centres.
    """

    def __init__(self, canvas: Canvas, x: float, y: float, scale: float, mirrored: bool = False) -> None:
        height, width = canvas.materials.shape
        self.canvas = canvas
        self._x, self._y, self._scale, self._mirrored = x, y, scale, mirrored
        sign = -1.0 if mirrored else 1.0
        self._u = (np.arange(width) + 0.5 - x) / (sign * scale)
        self._v = (np.arange(height) + 0.5 - y) / scale

    def area(self, u0: float, u1: float, v0: float, v1: float) -> Region:
        """A rectangle as a region, without painting it."""
        left, right = (-u1, -u0) if self._mirrored else (u0, u1)
        rows = self._span(self._y, v0, v1, len(self._v))
        columns = self._span(self._x, left, right, len(self._u))
        u, v = self._u[None, columns], self._v[rows, None]
        return Region(rows, columns, u, v, np.ones((v.shape[0], u.shape[1]), dtype=bool))

    def disc(self, u: float, v: float, ru: float, rv: float) -> Region:
        """An ellipse as a region, without painting it."""
        region = self.area(u - ru, u + ru, v - rv, v + rv)
        across, down = (region.u - u) / ru, (region.v - v) / rv
        return region.where(across * across + down * down <= 1.0)

    def _span(self, origin: float, low: float, high: float, size: int) -> slice:
        first = min(max(math.ceil(origin + low * self._scale - 0.5), 0), size)
        last = min(max(math.ceil(origin + high * self._scale - 0.5), first), size)
        return slice(first, last)

    def _paint(
        self, material: int, window: Region, distance: np.ndarray, light: float, roundness: float
    ) -> Region:
        """Paint where distance (0 at the middle of a shape, 1 at its edge) is at most 1."""
        region = window._replace(inside=distance <= 1.0)
        # Outside a shape distances grow beyond what an int16 holds.
        fall = FULL_LIGHT * roundness * np.minimum(distance, 1.0)
        shade = (FULL_LIGHT * light - fall).astype(np.int16)
        pixels = region.rows, region.columns
        np.copyto(self.canvas.materials[pixels], np.uint16(material), where=region.inside)
        np.copyto(self.canvas.shade[pixels], shade, where=region.inside)
        return region

    def ellipse(
        self,
        material: int,
        u: float,
        v: float,
        ru: float,
        rv: float,
        light: float = 1.0,
        roundness: float = 0.2,
    ) -> Region:
        """An ellipse with its middle at (u, v) and half-axes ru, rv."""
        window = self.area(u - ru, u + ru, v - rv, v + rv)
        across, down = (window.u - u) / ru, (window.v - v) / rv
        return self._paint(material, window, across * across + down * down, light, roundness)

    def block(
        self,
        material: int,
        v0: float,
        v1: float,
        top: tuple[float, float],
        bottom: tuple[float, float] | None = None,
        light: float = 1.0,
        roundness: float = 0.0,
    ) -> Region:
        """A shape with level top and bottom, from (left, right) at v0 to (left, right) at v1."""
        bottom = top if bottom is None else bottom
        window = self.area(min(top[0], bottom[0]), max(top[1], bottom[1]), v0, v1)
        down = (window.v - v0) / (v1 - v0)
        left = top[0] + (bottom[0] - top[0]) * down
        right = top[1] + (bottom[1] - top[1]) * down
        across = (2.0 * window.u - left - right) / np.maximum(right - left, 1e-6)
        return self._paint(material, window, across * across, light, roundness)

    def bar(
        self,
        material: int,
        v0: float,
        v1: float,
        u: float,
        half: float,
        light: float = 1.0,
        roundness: float = 0.0,
    ) -> Region:
        """A rectangle from v0 to v1, reaching `half` to both sides of u."""
        return self.block(material, v0, v1, (u - half, u + half), None, light, roundness)

    def limb(
        self,
        material: int,
        start: tuple[float, float],
        end: tuple[float, float],
        radii: tuple[float, float],
        light: float = 1.0,
        roundness: float = 0.25,
    ) -> Region:
        """A tapered stroke with round ends, from (u, v) to (u, v)."""
        reach = max(radii)
        window = self.area(
            min(start[0], end[0]) - reach,
            max(start[0], end[0]) + reach,
            min(start[1], end[1]) - reach,
            max(start[1], end[1]) + reach,
        )
        du, dv = end[0] - start[0], end[1] - start[1]
        across, down = window.u - start[0], window.v - start[1]
        along = np.clip((across * du + down * dv) / max(du * du + dv * dv, 1e-9), 0.0, 1.0)
        off_u, off_v = across - along * du, down - along * dv
        radius = radii[0] + (radii[1] - radii[0]) * along
        distance = (off_u * off_u + off_v * off_v) / (radius * radius)
        return self._paint(material, window, distance, light, roundness)

    def recolour(self, region: Region, changes: dict[int, int]) -> None:
        """Replace materials in a region and keep the shade: {painted index: new index}."""
        window = self.canvas.materials[region.rows, region.columns]
        before = window.copy()
        for painted, new in changes.items():
            np.copyto(window, np.uint16(new), where=region.inside & (before == painted))

    def tint(self, region: Region, channel: int, value: int, materials: set[int]) -> set[int]:
        """Set one channel of the given materials in a region; the other channels stay.

        Returns:
            The materials that were added for it.
        """
        window = self.canvas.materials[region.rows, region.columns]
        present = materials & set(window[region.inside].tolist())
        changes = {}
        for index in sorted(present):
            before = self.canvas.table[index]
            red, green, blue, nir, tir = (value if at == channel else before[at] for at in range(5))
            changes[index] = self.canvas.add((red, green, blue, nir, tir))
        self.recolour(region, changes)
        return set(changes.values())

    def dim(self, region: Region, light: float) -> None:
        """Darken what is painted in a region (a shadow); light 1 changes nothing."""
        window = self.canvas.shade[region.rows, region.columns]
        np.copyto(window, (window * light).astype(np.int16), where=region.inside)
