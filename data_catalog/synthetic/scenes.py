"""The scene of a camera: a panorama of walls, plants and ground, with objects in it.

A panorama is painted once per camera and is wider than a frame; every sample shows another window of it. So
the colours and objects behind a person depend on the camera and not on the person.
"""

from functools import lru_cache

import numpy as np

from data_catalog.synthetic.canvas import FULL_LIGHT, Brush, Canvas, Material
from data_catalog.synthetic.random_choices import RandomChoices
from data_catalog.synthetic.synthetic_settings import SyntheticSettings

FRAMES_WIDE = 4
"""Width of a panorama, in frames."""
SPARE_HEIGHT = 1.15
"""Height of a panorama, in frames."""

STONE: tuple[Material, ...] = (
    (150, 146, 138, 118, 88),
    (134, 108, 92, 126, 96),
    (172, 164, 146, 150, 92),
    (116, 118, 116, 96, 84),
    (158, 140, 118, 136, 98),
    (122, 110, 104, 108, 90),
)
GROUND: tuple[Material, ...] = (
    (104, 102, 98, 78, 104),
    (138, 132, 122, 104, 112),
    (92, 92, 94, 66, 100),
    (128, 116, 98, 112, 108),
)
PLANT: tuple[Material, ...] = (
    (84, 100, 62, 196, 70),
    (70, 86, 58, 182, 66),
    (104, 110, 72, 204, 76),
    (92, 92, 60, 176, 72),
)
OBJECT: tuple[Material, ...] = (
    (88, 72, 56, 110, 80),
    (96, 100, 104, 86, 72),
    (70, 78, 84, 64, 90),
    (148, 128, 100, 150, 84),
    (120, 88, 72, 132, 104),
    (86, 98, 90, 96, 78),
    (172, 168, 158, 160, 86),
    (112, 76, 68, 92, 120),
    (74, 86, 108, 72, 94),
)
SKY: Material = (176, 184, 190, 92, 28)
GLASS: Material = (74, 84, 90, 52, 62)
PALE: Material = (188, 186, 178, 168, 88)
DARK: Material = (58, 56, 54, 48, 84)


class Scene:
    """The materials and objects of one camera's scene.

    With `scene` 0 all cameras share one set of colours, with 1 each has its own.

    Attributes:
        draws: Random choices of objects and positions.
    """

    def __init__(self, settings: SyntheticSettings, camera: int, draws: RandomChoices) -> None:
        self.draws = draws
        self._common = RandomChoices(settings.seed, "common scene", settings.kind)
        self._own_share = settings.scene
        self._own_tint = self._tint(RandomChoices(settings.seed, "scene tint", settings.kind, camera))
        self._common_tint = self._tint(self._common)

    @staticmethod
    def _tint(draws: RandomChoices) -> tuple[int, ...]:
        bright, warm = draws.integer(-16, 16), draws.integer(-8, 10)
        return bright + warm, bright, bright - warm, 2 * bright, draws.integer(-44, -8)

    def add(self, canvas: Canvas, choices: tuple[Material, ...]) -> int:
        """Add one of the materials, with the tint of this camera, to a canvas; returns its index."""
        own, common = self.draws.pick(choices), self._common.pick(choices)
        mixed = []
        for at in range(5):
            own_level, common_level = own[at] + self._own_tint[at], common[at] + self._common_tint[at]
            level = common_level + self._own_share * (own_level - common_level)
            mixed.append(min(max(int(level), 4), 250))
        return canvas.add((mixed[0], mixed[1], mixed[2], mixed[3], mixed[4]))


@lru_cache(maxsize=32)
def panorama(settings: SyntheticSettings, camera: int) -> Canvas:
    """The panorama of a camera (0-based), at twice the final resolution. Copy it before painting."""
    height, width = int(2 * settings.height * SPARE_HEIGHT), 2 * settings.width * FRAMES_WIDE
    canvas = Canvas(height, width)
    scene = Scene(settings, camera, RandomChoices(settings.seed, "scene", settings.kind, camera))
    brush = Brush(canvas, 0.0, 0.0, height)
    wide = width / height
    ground = scene.draws.uniform(0.52, 0.64) if settings.kind == "person" else scene.draws.uniform(0.36, 0.5)
    scene.add(canvas, (SKY,))
    themes = (_street, _park, _hall, _yard)
    # Neighbouring cameras have different themes.
    first = RandomChoices(settings.seed, "first theme", settings.kind).integer(0, len(themes) - 1)
    themes[(first + camera) % len(themes)](brush, scene, wide, ground)
    _texture(canvas, scene.draws)
    for _ in range(int(settings.clutter * wide * 4)):
        middle, foot = scene.draws.uniform(0.0, wide), ground + scene.draws.uniform(0.0, 0.16)
        paint_object(brush, scene, middle, foot, scene.draws.uniform(0.6, 1.2))
    return canvas


def _texture(canvas: Canvas, draws: RandomChoices) -> None:
    """Stains, grain and leaves: uneven light on all surfaces, in three sizes."""
    height, width = canvas.materials.shape
    for cells, strength in ((5, 22), (18, 15), (60, 17)):
        cell = max(height // cells, 1)
        coarse = draws.octets(height // cell + 2, width // cell + 2) - 128
        fine = _between(_between(coarse, height, cell).T, width, cell).T
        canvas.shade += ((fine * strength) >> 6).astype(np.int16)
    np.clip(canvas.shade, 60, FULL_LIGHT + 90, out=canvas.shade)


def _between(coarse: np.ndarray, length: int, cell: int) -> np.ndarray:
    """Rows between those of a coarse grid, by linear interpolation with integers."""
    at = np.arange(length)
    row, step = at // cell, (at % cell)[:, None]
    rows: np.ndarray = (coarse[row] * (cell - step) + coarse[row + 1] * step) // cell
    return rows


def _floor(brush: Brush, scene: Scene, wide: float, ground: float) -> None:
    """Ground with a kerb and slabs, lighter in the distance."""
    brush.block(scene.add(brush.canvas, GROUND), ground, 1.0, (0.0, wide))
    strip = ground + scene.draws.uniform(0.04, 0.1)
    brush.block(scene.add(brush.canvas, GROUND), ground, strip, (0.0, wide), light=1.12)
    brush.dim(brush.area(0.0, wide, strip, strip + 0.012), 0.72)
    slab, row = scene.draws.uniform(0.25, 0.5), strip + 0.12
    while row < 1.0:
        brush.dim(brush.area(0.0, wide, row, row + 0.006), 0.85)
        row += 0.09 + 0.5 * (row - ground) * 0.4
    joint = slab / 2.0
    while joint < wide:
        brush.dim(brush.area(joint, joint + 0.006, strip, 1.0), 0.88)
        joint += slab


def _street(brush: Brush, scene: Scene, wide: float, ground: float) -> None:
    """House fronts with windows and doors."""
    glass, frame = (scene.add(brush.canvas, (GLASS,)), scene.add(brush.canvas, (PALE,)))
    left = 0.0
    while left < wide:
        right = left + scene.draws.uniform(0.5, 1.0)
        brush.block(scene.add(brush.canvas, STONE), 0.0, ground, (left, right))
        brush.block(scene.add(brush.canvas, STONE), ground - 0.1, ground, (left, right), light=0.85)
        step, at = scene.draws.uniform(0.2, 0.3), left + 0.06
        while at + 0.14 < right:
            for top in (0.04, 0.29):
                brush.block(frame, top, top + 0.17, (at - 0.012, at + 0.132))
                light = scene.draws.uniform(0.7, 1.3)
                brush.block(glass, top + 0.012, top + 0.158, (at, at + 0.12), light=light)
                brush.block(frame, top + 0.075, top + 0.083, (at, at + 0.12))
            at += step
        door = scene.draws.uniform(left, right - 0.16)
        brush.block(scene.add(brush.canvas, OBJECT), ground - 0.3, ground, (door, door + 0.15))
        brush.dim(brush.area(right - 0.012, right, 0.0, ground), 0.7)
        left = right
    _floor(brush, scene, wide, ground)


def _park(brush: Brush, scene: Scene, wide: float, ground: float) -> None:
    """Trees, a hedge, grass and a path."""
    plants = [scene.add(brush.canvas, PLANT) for _ in range(3)]
    bark, draws = scene.add(brush.canvas, OBJECT[:1]), scene.draws
    brush.block(plants[0], 0.1, ground, (0.0, wide), light=0.7)
    for _ in range(int(60 * wide)):
        u, v = draws.uniform(0.0, wide), draws.uniform(0.02, ground)
        size = draws.uniform(0.03, 0.09)
        brush.ellipse(draws.pick(plants), u, v, size, size * 0.8, draws.uniform(0.55, 1.1), 0.25)
    for _ in range(int(2.5 * wide)):
        u = draws.uniform(0.0, wide)
        brush.limb(bark, (u, 0.0), (u + draws.uniform(-0.03, 0.03), ground + 0.02), (0.022, 0.034))
    brush.block(scene.add(brush.canvas, PLANT), ground, 1.0, (0.0, wide), light=1.1)
    path = scene.add(brush.canvas, GROUND)
    brush.block(path, ground + draws.uniform(0.06, 0.14), 1.0, (0.0, wide), light=1.1)


def _hall(brush: Brush, scene: Scene, wide: float, ground: float) -> None:
    """A tiled wall with posters, columns and benches."""
    draws = scene.draws
    brush.block(scene.add(brush.canvas, STONE), 0.0, ground, (0.0, wide), light=1.1)
    brush.block(scene.add(brush.canvas, STONE), ground * 0.62, ground, (0.0, wide))
    for row in range(1, 9):
        brush.dim(brush.area(0.0, wide, ground * row / 9.0, ground * row / 9.0 + 0.005), 0.86)
    joint = 0.0
    while joint < wide:
        brush.dim(brush.area(joint, joint + 0.005, 0.0, ground), 0.88)
        joint += 0.11
    posters = [scene.add(brush.canvas, OBJECT) for _ in range(4)]
    pale = scene.add(brush.canvas, (PALE,))
    for _ in range(int(3 * wide)):
        u, top = draws.uniform(0.0, wide), draws.uniform(0.05, 0.2)
        brush.block(pale, top, top + 0.24, (u, u + 0.17))
        brush.block(draws.pick(posters), top + 0.012, top + 0.16, (u + 0.012, u + 0.158))
        brush.block(draws.pick(posters), top + 0.18, top + 0.2, (u + 0.02, u + 0.12), light=0.8)
    column = scene.add(brush.canvas, STONE)
    at = draws.uniform(0.1, 0.5)
    while at < wide:
        brush.bar(column, 0.0, ground + 0.03, at, 0.055, roundness=0.35)
        at += 0.8
    _floor(brush, scene, wide, ground)


def _yard(brush: Brush, scene: Scene, wide: float, ground: float) -> None:
    """Sky, distant buildings, a fence, and marked ground."""
    draws = scene.draws
    left = 0.0
    while left < wide:
        right, top = left + draws.uniform(0.25, 0.6), draws.uniform(0.06, 0.3)
        brush.block(scene.add(brush.canvas, STONE), top, ground, (left, right), light=1.05)
        for row in (top + 0.04, top + 0.12):
            brush.dim(brush.area(left + 0.04, right - 0.04, row, row + 0.035), 0.6)
        left = right
    brush.block(scene.add(brush.canvas, PLANT), ground - 0.12, ground, (0.0, wide), light=0.8)
    _floor(brush, scene, wide, ground)
    rail, at = scene.add(brush.canvas, OBJECT), 0.0
    while at < wide:
        brush.block(rail, ground - 0.16, ground + 0.02, (at, at + 0.014))
        at += 0.07
    for row in (ground - 0.15, ground - 0.04):
        brush.block(rail, row, row + 0.014, (0.0, wide))
    line = scene.add(brush.canvas, (PALE,))
    brush.block(line, ground + 0.2, ground + 0.22, (0.0, wide))


def paint_object(brush: Brush, scene: Scene, u: float, foot: float, size: float) -> None:
    """Paint one object: a post, bin, crate, bush, bench, board or bollard."""
    draws, canvas = scene.draws, brush.canvas
    kind = draws.pick(("post", "bin", "crate", "bush", "bench", "board", "bollard"))
    light = draws.uniform(0.75, 1.1)
    material = scene.add(canvas, PLANT if kind == "bush" else OBJECT)
    if kind == "post":
        brush.bar(material, foot - 0.75 * size, foot, u, 0.016, light=light, roundness=0.3)
    elif kind == "bin":
        wide = 0.06 * size
        narrow = wide * 0.8
        upper, lower = (u - wide, u + wide), (u - narrow, u + narrow)
        brush.block(material, foot - 0.2 * size, foot, upper, lower, light, 0.3)
        brush.bar(material, foot - 0.22 * size, foot - 0.19 * size, u, wide * 1.1, light=light * 0.7)
    elif kind == "crate":
        for row in range(draws.integer(1, 2)):
            top = foot - 0.14 * size * (row + 1)
            brush.bar(material, top, top + 0.135 * size, u, 0.09 * size, light=light)
            brush.bar(material, top + 0.05 * size, top + 0.06 * size, u, 0.09 * size, light=0.6)
    elif kind == "bush":
        for leaf in range(12):
            aside, up = draws.uniform(-0.1, 0.1) * size, (0.02 + 0.012 * leaf) * size
            shade = draws.uniform(0.6, 1.15)
            brush.ellipse(material, u + aside, foot - up, 0.035 * size, 0.03 * size, shade, 0.2)
    elif kind == "bench":
        for plank in (0.2, 0.15, 0.1):
            brush.bar(material, foot - plank * size, foot - (plank - 0.03) * size, u, 0.16 * size)
        for leg in (-0.13, 0.13):
            brush.bar(material, foot - 0.1 * size, foot, u + leg * size, 0.012, light=0.6)
    elif kind == "board":
        brush.bar(scene.add(canvas, (DARK,)), foot - 0.45 * size, foot, u, 0.01)
        top = foot - 0.6 * size
        brush.bar(material, top, top + 0.22 * size, u, 0.09 * size, light=light)
        brush.bar(material, top + 0.03, top + 0.06, u, 0.05 * size, light=1.35)
    else:
        brush.limb(material, (u, foot - 0.14 * size), (u, foot), (0.024 * size, 0.028 * size), light)
