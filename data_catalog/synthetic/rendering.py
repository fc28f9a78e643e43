"""Rendering of one sample: a scene, the target, bystanders and occluders, as three sensors see them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_catalog.synthetic import people, vehicles
from data_catalog.synthetic.canvas import TIR, Brush, Canvas
from data_catalog.synthetic.identities import Identity, make_bystander, make_identity
from data_catalog.synthetic.random_choices import RandomChoices
from data_catalog.synthetic.scenes import Scene, paint_object, panorama
from data_catalog.synthetic.synthetic_settings import SyntheticSettings
from stmi.modality import MODALITIES, Modality

DETAIL = 2
"""Scenes are painted at this many times the final resolution."""
NIGHT_LIGHT = 0.06
"""Share of visible light that is left at full darkness."""


@dataclass(frozen=True)
class RenderedSample:
    """One image triplet with its ground truth.

    Attributes:
        pixels: uint8 (3, height, width, 3): RGB, NIR, TIR. NIR and TIR are grey, in three equal channels.
        mask: uint8 (height, width): 1 where the target is visible, else 0.
        attributes: The true attributes of the target's identity.
        visible: Names of the attributes that can be seen in this sample.
        darkness: Darkness of visible light, 0 to 1.
    """

    pixels: np.ndarray
    mask: np.ndarray
    attributes: Mapping[str, str]
    visible: frozenset[str]
    darkness: float


@dataclass(frozen=True)
class Composition:
    """A painted sample before the sensors.

    Attributes:
        canvas: Everything painted, at `DETAIL` times the final resolution.
        first: Index of the target's first material.
        last: Index after the target's last material.
        parts: Index of the material of every part of the target.
        view: The visible side of the target.
    """

    canvas: Canvas
    first: int
    last: int
    parts: Mapping[str, int]
    view: str


VISIBLE_ON: Mapping[str, tuple[str, ...]] = {
    "gender": ("skin", "hair", "upper"),
    "age": ("skin", "hair"),
    "hair": ("skin", "hair"),
    "upper_garment": ("upper", "upper_pattern"),
    "upper_colour": ("upper", "upper_pattern"),
    "lower_garment": ("lower",),
    "lower_colour": ("lower",),
    "shoes": ("shoes", "sole"),
    "shoes_colour": ("shoes",),
    "bag": ("bag", "upper"),
    "hat": ("hat", "hair", "skin"),
    "glasses": ("frame", "glass"),
    "carried_object": ("carried", "upper"),
    "type": ("paint", "glass"),
    "colour": ("paint",),
    "brand": ("plate",),
    "lamps": ("lamp", "rear_lamp"),
    "damage": ("paint", "panel", "scratch"),
    "accessory": ("accessory", "glass"),
}
"""The parts that show each attribute; a bare head shows that there is no hat."""
FACE_ONLY = ("glasses", "age")
"""Attributes that are not visible from behind."""


def render_sample(settings: SyntheticSettings, identity: int, camera: int, shot: int) -> RenderedSample:
    """Render the sample of an identity at a camera: a pure function of the arguments.

    Args:
        settings: What is rendered, and how hard it is.
        identity: Number of the identity, at least 1; it need not be in a split.
        camera: 0-based camera.
        shot: 0-based shot of this identity by this camera.

    Raises:
        ValueError: If the identity number is below 1.
    """
    who = make_identity(settings, identity)
    composition = compose(settings, identity, camera, shot)
    channels = _sense(
        settings, composition.canvas, camera, RandomChoices(settings.seed, "noise", identity, camera, shot)
    )
    pixels = np.empty((3, settings.height, settings.width, 3), dtype=np.uint8)
    pixels[0] = channels[..., :3]
    pixels[1] = channels[..., 3:4]
    pixels[2] = channels[..., 4:5]
    if (dead := settings.dead_at(camera)) != "none":
        pixels[MODALITIES.index(Modality(dead))] = 0
    materials = composition.canvas.materials
    belongs = (materials >= composition.first) & (materials < composition.last)
    mask = (_sum_of_squares(belongs.astype(np.int32)) >= DETAIL).astype(np.uint8)
    seen = _visible_attributes(composition, who)
    return RenderedSample(pixels, mask, who.attributes, seen, settings.darkness_at(camera))


def true_attributes(settings: SyntheticSettings, identity: int) -> dict[str, str]:
    """The true value of every attribute of an identity."""
    return dict(make_identity(settings, identity).attributes)


def compose(settings: SyntheticSettings, identity: int, camera: int, shot: int) -> Composition:
    """Paint a sample: scene, objects and bystanders behind, the target, and what is in front of it."""
    key = (identity, camera, shot)
    draws = RandomChoices(settings.seed, "sample", settings.kind, *key)
    height, width = DETAIL * settings.height, DETAIL * settings.width
    wide = panorama(settings, camera)
    top = int(draws.uniform() * (wide.materials.shape[0] - height))
    left = int(draws.uniform() * (wide.materials.shape[1] - width))
    canvas = wide.crop(top, left, height, width)
    _paint_objects(settings, canvas, camera, draws)
    if draws.chance(settings.bystander):
        for count in range(draws.integer(1, 2)):
            side = draws.pick((-1.0, 1.0))
            _paint_bystander(settings, canvas, draws, side * draws.uniform(0.22, 0.52), key, count)
    first = len(canvas.table)
    size = draws.uniform(*settings.person_height)
    across = 0.5 + settings.shift * draws.uniform(-1.0, 1.0)
    brush = _brush(settings, canvas, draws, across, draws.uniform(0.1, 0.9), size)
    view, parts = _paint_figure(settings, brush, make_identity(settings, identity), draws)
    last = len(canvas.table)
    if draws.chance(settings.bystander_in_front):
        _paint_bystander(settings, canvas, draws, draws.pick((-1.0, 1.0)) * draws.uniform(0.3, 0.5), key, 9)
    if draws.chance(settings.occlusion):
        _paint_occlusion(settings, canvas, camera, draws)
    return Composition(canvas, first, last, parts, view)


def _brush(
    settings: SyntheticSettings, canvas: Canvas, draws: RandomChoices, across: float, down: float, size: float
) -> Brush:
    """A brush for a figure of this size at (across, down) of the free space, mirrored or not."""
    height, width = canvas.materials.shape
    mirrored = draws.chance(0.5)
    if settings.kind == "person":
        return Brush(canvas, across * width, down * (1.0 - size) * height, size * height, mirrored)
    return Brush(canvas, across * width, (0.8 + 0.13 * down) * height, size * width, mirrored)


def _paint_figure(
    settings: SyntheticSettings, brush: Brush, who: Identity, draws: RandomChoices
) -> tuple[str, Mapping[str, int]]:
    """Paint a person or a vehicle with its shadow; returns the visible side and the parts' materials."""
    if settings.kind == "person":
        pose = people.choose_pose(draws)
        brush.dim(brush.disc(0.04, 0.985, 0.2, 0.03), 0.6)
        person = people.PersonPainter(brush, who, pose)
        person.paint()
        return pose.view, person.index
    view = vehicles.choose_view(draws)
    half = 0.53 if view == "side" else 0.3
    brush.dim(brush.disc(0.0, 0.0, half, 0.035), 0.5)
    vehicle = vehicles.VehiclePainter(brush, who, view)
    vehicle.paint()
    return view, vehicle.index


def _paint_bystander(
    settings: SyntheticSettings,
    canvas: Canvas,
    draws: RandomChoices,
    aside: float,
    key: tuple[int, int, int],
    count: int,
) -> None:
    who = make_bystander(settings.kind, settings.seed, *key, count)
    size = settings.person_height[1] * draws.uniform(0.6, 1.0)
    across = 0.5 + (aside if settings.kind == "person" else 1.3 * aside)
    brush = _brush(settings, canvas, draws, across, draws.uniform(0.0, 1.0), size)
    _paint_figure(settings, brush, who, draws)


def _paint_objects(settings: SyntheticSettings, canvas: Canvas, camera: int, draws: RandomChoices) -> None:
    """Paint objects near the target, besides those of the scene."""
    height, width = canvas.materials.shape
    scene = Scene(settings, camera, draws)
    brush = Brush(canvas, 0.0, 0.0, height)
    for _ in range(int(settings.clutter * draws.uniform(0.0, 4.0))):
        paint_object(
            brush, scene, draws.uniform(0.0, width / height), draws.uniform(0.7, 1.0), draws.uniform(0.7, 1.5)
        )


def _paint_occlusion(settings: SyntheticSettings, canvas: Canvas, camera: int, draws: RandomChoices) -> None:
    """Paint a post, a rail, or a low wall or bush in front of the target."""
    height, width = canvas.materials.shape
    scene = Scene(settings, camera, draws)
    brush = Brush(canvas, 0.0, 0.0, height)
    material = scene.add(canvas, ((96, 98, 100, 84, 74), (108, 88, 70, 120, 82), (78, 92, 60, 188, 70)))
    wide = width / height
    kind = draws.pick(("post", "rail", "low"))
    if kind == "post":
        u = draws.uniform(0.2, 0.8) * wide
        thick = draws.uniform(0.025, 0.06)
        brush.bar(material, 0.0, 1.0, u, thick, roundness=0.35)
    elif kind == "rail":
        v = draws.uniform(0.4, 0.75)
        brush.block(material, v, v + draws.uniform(0.05, 0.1), (0.0, wide), roundness=0.1)
    else:
        v = draws.uniform(0.72, 0.86)
        brush.block(material, v, 1.0, (0.0, wide), light=0.95)
        brush.block(material, v, v + 0.025, (0.0, wide), light=1.15)


def _sum_of_squares(image: np.ndarray) -> np.ndarray:
    """The sum of every `DETAIL` x `DETAIL` square of pixels; rows and columns come first."""
    rows = image[0::DETAIL] + image[1::DETAIL]
    sums: np.ndarray = rows[:, 0::DETAIL] + rows[:, 1::DETAIL]
    return sums


def _visible_attributes(composition: Composition, who: Identity) -> frozenset[str]:
    """Attributes whose parts cover enough of the image: about 2 pixels of 64 x 32."""
    canvas = composition.canvas
    counts = np.bincount(canvas.materials.ravel(), minlength=len(canvas.table))
    enough = canvas.materials.size // 1000
    seen = set()
    for name in who.attributes:
        area = sum(
            int(counts[composition.parts[part]]) for part in VISIBLE_ON[name] if part in composition.parts
        )
        bare_face = name == "glasses" and who.attributes[name] == "none" and composition.view != "back"
        hidden = name in FACE_ONLY and composition.view == "back"
        if (area >= enough or bare_face) and not hidden:
            seen.add(name)
    if composition.view == "side":
        seen.discard("brand")
    return frozenset(seen)


@lru_cache(maxsize=16)
def _headlight(height: int, width: int) -> np.ndarray:
    """Light of the infrared illuminator over the frame at night: int32 (height, width), 256 in the middle."""
    v = (2.0 * np.arange(height)[:, None] + 1.0) / height - 1.0
    u = (2.0 * np.arange(width)[None, :] + 1.0) / width - 1.0
    light: np.ndarray = np.floor(256.0 - 60.0 * v * v - 130.0 * u * u).astype(np.int32)
    return light


def _sense(settings: SyntheticSettings, canvas: Canvas, camera: int, draws: RandomChoices) -> np.ndarray:
    """What the three sensors of a camera measure of a canvas: uint8 (height, width, 5)."""
    darkness = settings.darkness_at(camera)
    sensor = RandomChoices(settings.seed, "sensor", settings.kind, camera)
    daylight = (1.0 - darkness) + NIGHT_LIGHT * darkness
    cast = [sensor.uniform(0.95, 1.05) for _ in range(5)]
    exposure = draws.uniform(0.88, 1.12)
    gains = [int(256 * daylight * cast[at] * exposure) for at in range(3)]
    # Infrared cameras adjust their gain themselves, so a material has different levels in different shots.
    gains += [int(256 * cast[3] * draws.uniform(0.72, 1.2)), int(256 * draws.uniform(0.85, 1.1))]
    levels = _sum_of_squares(canvas.colours()) * np.array(gains, dtype=np.int32)
    levels >>= 10
    if darkness > 0.0:
        lit = _headlight(settings.height, settings.width)
        share = int(256 * darkness)
        levels[..., 3] = (levels[..., 3] * (256 * (256 - share) + lit * share)) >> 16
    levels[..., TIR] = _blur(levels[..., TIR]) + sensor.integer(-8, 8) + draws.integer(-14, 14)
    noise = draws.noise(settings.height, settings.width, 5)
    # In the dark, visible light is amplified together with its noise.
    spread = np.array([int(10 + 8 * darkness)] * 3 + [12, 9], dtype=np.int32)
    levels += (noise * spread) >> 8
    return np.clip(levels, 0, 255).astype(np.uint8)


def _blur(image: np.ndarray) -> np.ndarray:
    """The soft image of a thermal camera: int32 (height, width), weights 1-2-1 in both directions."""
    padded = np.pad(image, 1, mode="edge")
    down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    blurred: np.ndarray = (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) >> 4
    return blurred
