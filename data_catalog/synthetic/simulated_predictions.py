"""Attribute predictions as an imperfect multi-modal language model would make them.

There is one prediction from each of the three images and one from all three side by side (JOINT). What is
not visible is unknown. The rest is sometimes dropped and sometimes wrong, mostly in the same way for all
images of an identity: a model that takes one olive coat for a brown one does so again.
"""

from collections.abc import Mapping
from typing import TypedDict

from data_catalog.captions.predicted_attributes import UNKNOWN
from data_catalog.synthetic.attributes import CLOTH_COLOURS, attribute_values
from data_catalog.synthetic.random_choices import RandomChoices
from data_catalog.synthetic.rendering import RenderedSample
from data_catalog.synthetic.synthetic_settings import SyntheticSettings

IMAGES: tuple[str, ...] = ("RGB", "NIR", "TIR")
SOURCES: tuple[str, ...] = (*IMAGES, "JOINT")
"""What a prediction is made from: an image, or all of them."""

NIGHT = 0.7
"""From this darkness on, visible light shows nothing."""
DUSK = 0.35
"""From this darkness on, colours are uncertain."""
FINE_DETAIL = ("age", "hair", "glasses", "shoes", "brand", "damage", "upper_garment")
"""Attributes that a thermal image shows badly."""
ERROR_RATE: Mapping[str, float] = {"RGB": 1.0, "NIR": 1.1, "TIR": 1.25, "JOINT": 0.8}
"""How often a source is wrong or silent, relative to the settings."""
INDEPENDENT_SHARE = 0.1
"""Share of predictions that are independent of those for the identity's other images."""


class SimulatedPrediction(TypedDict):
    """The value of one attribute as predicted from one source, and the confidence in it, 0 to 1."""

    value: str
    confidence: float


def predict_attributes(
    settings: SyntheticSettings, sample: RenderedSample, identity: int, camera: int, shot: int
) -> dict[str, dict[str, SimulatedPrediction]]:
    """The predictions for a sample by source and attribute: every attribute from every source."""
    values = attribute_values(settings.kind)
    image = RandomChoices(settings.seed, "image reading", settings.kind, identity, camera, shot)
    shared = RandomChoices(settings.seed, "reading", settings.kind, identity)
    dead = settings.dead_at(camera)
    predictions: dict[str, dict[str, SimulatedPrediction]] = {}
    for source in SOURCES:
        predictions[source] = {}
        for name, true_value in sample.attributes.items():
            shared_numbers = tuple(shared.uniform() for _ in range(3))
            own_numbers = tuple(image.uniform() for _ in range(3))
            numbers = own_numbers if image.chance(INDEPENDENT_SHARE) else shared_numbers
            jitter = image.uniform(-0.04, 0.04)
            if any(_is_visible(image, name, sample) for image in _images_of(source) if image != dead):
                error_rate = _error_rate(source, name, sample)
                prediction = _predict(settings, values[name], true_value, numbers, error_rate, jitter)
            else:
                prediction = _unknown(numbers[2], jitter)
            predictions[source][name] = prediction
    return predictions


def _images_of(source: str) -> tuple[str, ...]:
    return IMAGES if source == "JOINT" else (source,)


def _is_visible(image: str, name: str, sample: RenderedSample) -> bool:
    """Whether a living image shows the attribute at all: colours are in RGB alone."""
    if name not in sample.visible:
        return False
    return sample.darkness < NIGHT if image == "RGB" else "colour" not in name


def _error_rate(source: str, name: str, sample: RenderedSample) -> float:
    """How often a visible attribute is dropped or predicted wrongly, relative to the settings."""
    is_hard = name in FINE_DETAIL if source == "TIR" else "colour" in name and sample.darkness >= DUSK
    return ERROR_RATE[source] * (1.2 if is_hard else 1.0)


def _predict(
    settings: SyntheticSettings,
    values: tuple[str, ...],
    true_value: str,
    numbers: tuple[float, ...],
    error_rate: float,
    jitter: float,
) -> SimulatedPrediction:
    """The prediction of a visible attribute: dropped, wrong or right, as the random numbers decide."""
    dropped = min(settings.readings_dropped * error_rate, 1.0)
    wrong = min(settings.readings_wrong * error_rate, 1.0 - dropped)
    if numbers[0] < dropped:
        return _unknown(numbers[2], jitter)
    if numbers[0] < dropped + wrong:
        return {
            "value": _confuse(values, true_value, numbers[1]),
            "confidence": _share(0.35 + 0.45 * numbers[2], jitter),
        }
    return {"value": true_value, "confidence": _share(0.55 + 0.4 * numbers[2], jitter)}


def _confuse(values: tuple[str, ...], true_value: str, number: float) -> str:
    """Another value; a colour is confused with one of the three most similar colours."""
    others = [value for value in values if value != true_value]
    if true_value in CLOTH_COLOURS:
        true_colour = CLOTH_COLOURS[true_value]

        def difference(value: str) -> int:
            return sum((a - b) ** 2 for a, b in zip(CLOTH_COLOURS[value], true_colour, strict=True))

        others = sorted(others, key=difference)[:3]
    return others[int(number * len(others))]


def _unknown(number: float, jitter: float) -> SimulatedPrediction:
    return {"value": UNKNOWN, "confidence": _share(0.05 + 0.15 * number, jitter)}


def _share(confidence: float, jitter: float) -> float:
    return round(min(max(confidence + jitter, 0.0), 1.0), 2)
