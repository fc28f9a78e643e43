"""What a sentence says of a person's image: what an image of that modality can show, and no more."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from data_catalog.captions.sentences import ABSENT, PERSON, write_caption
from data_catalog.synthetic.attributes import CLOTH_COLOURS
from data_catalog.synthetic.canvas import NIR, TIR
from data_catalog.synthetic.identities import Identity, Patch
from data_catalog.synthetic.rendering import RenderedSample
from stmi.modality import Modality

BELONGINGS: Mapping[str, str] = MappingProxyType({"bag": "bag", "hat": "hat", "carried_object": "carried"})
"""Attributes whose value is named with a colour, and the part of the identity that has it."""
CHANNELS: Mapping[Modality, int] = MappingProxyType({Modality.NIR: NIR, Modality.TIR: TIR})
"""The channel of a material that a modality shows; RGB shows three."""
LEVELS: Mapping[int, tuple[tuple[int, ...], tuple[str, ...]]] = MappingProxyType(
    {
        NIR: ((83, 116, 149, 182), ("dark", "dim", "medium", "light", "bright")),
        TIR: ((100, 125, 147, 170), ("icy", "cool", "mild", "warm", "hot")),
    }
)
"""What a level of an infrared channel is called: upper limits of all words but the last, and the words.

No word is one of a colour's: a grey coat can be any of them.
"""
PATTERN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "hoops": "hooped",
        "stripes": "striped",
        "checks": "checked",
        "dots": "dotted",
        "two halves": "halved",
        "badge": "patched",
        "sash": "sashed",
    }
)
SENTENCE = replace(
    PERSON,
    clauses=(("with", ("{hair} hair", "a {mark}", "a {second_mark}")), *PERSON.clauses[1:]),
)


def attributes_in_image(who: Identity, sample: RenderedSample, modality: Modality) -> dict[str, str]:
    """What can be seen of a person in one of a sample's images.

    RGB shows colours. Near infrared shows how much cloth reflects, thermal infrared how warm it is; each has
    words of its own, and shows patches (marks) that the others do not.

    Args:
        who: The person.
        sample: A sample of this person.
        modality: Modality of the image.
    """
    channel = CHANNELS.get(modality)
    shown = {name: value for name, value in sample.attributes.items() if name in sample.visible}
    for part in ("lower", "shoes", "upper"):
        if f"{part}_colour" in shown:
            shown[f"{part}_colour"] = _word(who, part, channel)
    if "upper_colour" in shown and who.pattern in PATTERN_WORDS:
        second = _word(who, "upper_pattern", channel)
        if second != shown["upper_colour"]:
            shown["upper_colour"] = f"{PATTERN_WORDS[who.pattern]} {shown['upper_colour']} and {second}"
    for name, part in BELONGINGS.items():
        if shown.get(name, ABSENT) != ABSENT:
            shown[name] = f"{_word(who, part, channel)} {shown[name]}"
    marks = [_mark(patch) for patch in who.patches if patch.channel == channel]
    return shown | dict(zip(("mark", "second_mark"), marks, strict=False))


def write_sentence(attributes: Mapping[str, str], random: np.random.Generator, omitted: float) -> str:
    """A sentence that contains each attribute with probability 1 - `omitted`."""
    kept = {name: value for name, value in attributes.items() if random.random() >= omitted}
    return write_caption(kept, SENTENCE)


def _word(who: Identity, part: str, channel: int | None) -> str:
    """The colour of a part, or its level in an infrared channel."""
    material = who.materials[part]
    if channel is not None:
        return _level(channel, material[channel])
    distances = {
        name: sum((one - other) ** 2 for one, other in zip(colour, material[:3], strict=True))
        for name, colour in CLOTH_COLOURS.items()
    }
    return min(distances, key=distances.__getitem__)


def _level(channel: int, value: int) -> str:
    limits, words = LEVELS[channel]
    return words[sum(value >= limit for limit in limits)]


def _mark(patch: Patch) -> str:
    shape = "band" if patch.wide > 1 else "bar" if patch.high > 0.4 else "spot"
    height = "high" if patch.down < 0.4 else "low" if patch.down > 0.6 else "mid"
    return f"{_level(patch.channel, patch.value)} {height} {shape}"
