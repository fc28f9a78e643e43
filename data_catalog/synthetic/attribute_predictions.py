"""What an imperfect multi-modal language model would say about a sample, attribute by attribute.

Each of the three images is read by itself, and the three side by side (JOINT). What cannot be seen
is unknown. The rest is sometimes dropped and sometimes misread, and mostly so for every image of an
identity: a model that takes one olive coat for a brown one does it again.
"""

from collections.abc import Mapping
from typing import TypedDict

from data_catalog.captions.predicted_attributes import UNKNOWN
from data_catalog.synthetic.attributes import CLOTH_COLOURS, attributes_of
from data_catalog.synthetic.draws import Draws
from data_catalog.synthetic.rendering import RenderedSample
from data_catalog.synthetic.settings import SyntheticSettings

SOURCES: tuple[str, ...] = ("RGB", "NIR", "TIR", "JOINT")
"""The images that a reading is made from."""

NIGHT = 0.7
"""Darkness from which on visible light shows nothing."""
DUSK = 0.35
"""Darkness from which on colours are doubtful."""
FINE_DETAIL = ("age", "hair", "glasses", "shoes", "brand", "damage", "upper_garment")
"""Attributes that a thermal image shows badly."""
ERROR_RATE: Mapping[str, float] = {"RGB": 1.0, "NIR": 1.1, "TIR": 1.25, "JOINT": 0.8}
"""How often a source is wrong or silent, relative to the settings."""
WHIM = 0.1
"""Share of readings that are made anew for one image instead of as for the identity's other images."""


class Reading(TypedDict):
    """One attribute as read from one source: its value, and the model's confidence in it, 0 to 1."""

    value: str
    confidence: float


def read_attributes(
    settings: SyntheticSettings, sample: RenderedSample, identity: int, camera: int, shot: int
) -> dict[str, dict[str, Reading]]:
    """Imperfect readings of a sample: {source: {attribute: reading}}, every attribute in every source."""
    values = attributes_of(settings.kind)
    image = Draws(settings.seed, "image reading", settings.kind, identity, camera, shot)
    habits = Draws(settings.seed, "reading", settings.kind, identity)
    readings: dict[str, dict[str, Reading]] = {}
    for source in SOURCES:
        readings[source] = {}
        for name, true_value in sample.attributes.items():
            habit = tuple(habits.uniform() for _ in range(3))
            whim = tuple(image.uniform() for _ in range(3))
            luck = whim if image.chance(WHIM) else habit
            jitter = image.uniform(-0.04, 0.04)
            if _is_readable(source, name, sample):
                doubt = _doubt(source, name, sample)
                reading = _read(settings, values[name], true_value, luck, doubt, jitter)
            else:
                reading = _unknown(luck[2], jitter)
            readings[source][name] = reading
    return readings


def _is_readable(source: str, name: str, sample: RenderedSample) -> bool:
    """Whether the source shows the attribute at all."""
    if name not in sample.visible:
        return False
    if "colour" in name:
        return source in ("RGB", "JOINT") and sample.darkness < NIGHT
    return source != "RGB" or sample.darkness < NIGHT


def _doubt(source: str, name: str, sample: RenderedSample) -> float:
    """How often a readable attribute is dropped or misread, relative to the settings."""
    is_hard = name in FINE_DETAIL if source == "TIR" else "colour" in name and sample.darkness >= DUSK
    return ERROR_RATE[source] * (1.2 if is_hard else 1.0)


def _read(
    settings: SyntheticSettings,
    values: tuple[str, ...],
    true_value: str,
    luck: tuple[float, ...],
    doubt: float,
    jitter: float,
) -> Reading:
    """A readable attribute: dropped, misread or right, as luck has it."""
    dropped = min(settings.readings_dropped * doubt, 1.0)
    wrong = min(settings.readings_wrong * doubt, 1.0 - dropped)
    if luck[0] < dropped:
        return _unknown(luck[2], jitter)
    if luck[0] < dropped + wrong:
        return {
            "value": _mistaken_for(values, true_value, luck[1]),
            "confidence": _share(0.35 + 0.45 * luck[2], jitter),
        }
    return {"value": true_value, "confidence": _share(0.55 + 0.4 * luck[2], jitter)}


def _mistaken_for(values: tuple[str, ...], true_value: str, luck: float) -> str:
    """Another value; a colour is mistaken for one of the three that look most like it."""
    others = [value for value in values if value != true_value]
    if true_value in CLOTH_COLOURS:
        true_colour = CLOTH_COLOURS[true_value]

        def difference(value: str) -> int:
            return sum((a - b) ** 2 for a, b in zip(CLOTH_COLOURS[value], true_colour, strict=True))

        others = sorted(others, key=difference)[:3]
    return others[int(luck * len(others))]


def _unknown(luck: float, jitter: float) -> Reading:
    return {"value": UNKNOWN, "confidence": _share(0.05 + 0.15 * luck, jitter)}


def _share(confidence: float, jitter: float) -> float:
    return round(min(max(confidence + jitter, 0.0), 1.0), 2)
