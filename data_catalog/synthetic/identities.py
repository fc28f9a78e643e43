"""Identities: what each looks like in visible light, near infrared and thermal infrared.

The appearance of an identity has three independent random parts: what visible light shows (build, clothes,
colours), what near infrared shows in addition, and what thermal infrared shows in addition. Twins share the
first part and one of the other two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from data_catalog.synthetic.attributes import CLOTH_COLOURS, Visible, attribute_values
from data_catalog.synthetic.canvas import NIR, TIR, Material
from data_catalog.synthetic.patterns import PATTERNS
from data_catalog.synthetic.random_choices import RandomChoices
from data_catalog.synthetic.spectra import INFRARED_RANGES
from data_catalog.synthetic.synthetic_settings import Kind, SyntheticSettings

SKIN_TONES: tuple[Visible, ...] = (
    (236, 196, 168),
    (220, 172, 138),
    (188, 136, 100),
    (138, 94, 66),
    (92, 62, 46),
)
HAIR_COLOURS: tuple[Visible, ...] = (
    (34, 28, 26),
    (72, 48, 32),
    (124, 84, 48),
    (206, 168, 104),
    (150, 60, 34),
)
GREY_HAIR: Visible = (186, 184, 180)


@dataclass(frozen=True)
class Patch:
    """A patch that only one spectrum shows, on the torso of a person or the side of a vehicle.

    Attributes:
        channel: NIR or TIR, as an index into a material.
        across: Its centre, -1 to 1 from one side of the body to the other.
        down: Its centre, 0 to 1 from top to bottom of the body.
        wide: Half its width, in the units of `across`.
        high: Half its height, in the units of `down`.
        value: What the channel shows there.
    """

    channel: int
    across: float
    down: float
    wide: float
    high: float
    value: int


@dataclass(frozen=True)
class Identity:
    """What is the same in all samples of a person or vehicle.

    Attributes:
        attributes: The true value of every attribute.
        build: Proportions, in units of the figure's size.
        pattern: Pattern of the upper garment, or of the paint.
        materials: The material of every part, by the part's name.
        patches: Patches that only one of NIR and TIR shows.
    """

    kind: Kind
    attributes: Mapping[str, str]
    build: Mapping[str, float]
    pattern: str
    materials: Mapping[str, Material]
    patches: tuple[Patch, ...]


def make_identity(settings: SyntheticSettings, identity: int) -> Identity:
    """The identity with a number, at least 1.

    Raises:
        ValueError: If the number is below 1.
    """
    if identity < 1:
        raise ValueError(f"identity is {identity}: expected a number from 1 up.")
    return _numbered(settings.kind, settings.seed, identity, settings.look_alikes)


def find_twin(settings: SyntheticSettings, identity: int) -> int | None:
    """The number of the identity that looks the same in visible light, or None."""
    first = identity - 1 + identity % 2
    if not _have_look_alike(settings.kind, settings.seed, first, settings.look_alikes):
        return None
    return first + 1 if identity == first else first


def make_bystander(kind: Kind, seed: int, *key: int | str) -> Identity:
    """A bystander, who belongs to no split."""
    name = "stranger " + " ".join(map(str, key))
    return _make(kind, seed, name, name, name)


def _have_look_alike(kind: Kind, seed: int, first: int, share: float) -> bool:
    return RandomChoices(seed, "look-alikes", kind, first).chance(share)


@lru_cache(maxsize=4096)
def _numbered(kind: Kind, seed: int, identity: int, look_alikes: float) -> Identity:
    """Identity 2k is the twin of 2k-1 where the two are look-alikes; it differs in NIR or in TIR."""
    own, first = str(identity), str(identity - 1)
    if identity % 2 or not _have_look_alike(kind, seed, identity - 1, look_alikes):
        return _make(kind, seed, own, own, own)
    if RandomChoices(seed, "look-alike spectrum", kind, identity).chance(0.5):
        return _make(kind, seed, first, own, first)
    return _make(kind, seed, first, first, own)


def _make(kind: Kind, seed: int, visible_key: str, nir_key: str, tir_key: str) -> Identity:
    """An identity from the random keys of its three parts."""
    draws = RandomChoices(seed, "visible", kind, visible_key)
    attributes, build, visible = _choose_person(draws) if kind == "person" else _choose_vehicle(draws)
    pattern = draws.pick_common(PATTERNS, 0.3 if kind == "person" else 0.6)
    nir_draws, tir_draws = (
        RandomChoices(seed, "near infrared", kind, nir_key),
        RandomChoices(seed, "heat", kind, tir_key),
    )
    # Values are chosen for every part, worn or not, so that those of a twin stay the same.
    infrared = {
        part: (nir_draws.integer(*nir), tir_draws.integer(*tir))
        for part, (nir, tir) in INFRARED_RANGES[kind].items()
    }
    materials = {part: (*colour, *infrared[part]) for part, colour in visible.items()}
    patches = (*_choose_patches(nir_draws, NIR), *_choose_patches(tir_draws, TIR))
    return Identity(kind, attributes, build, pattern, materials, patches)


def _choose_patches(draws: RandomChoices, channel: int) -> tuple[Patch, ...]:
    """One or two patches: a band, a column or a spot."""
    patches = []
    for _ in range(draws.integer(1, 2)):
        shape = draws.pick(("band", "column", "spot"))
        wide = {"band": 1.2, "column": 0.22, "spot": 0.45}[shape]
        high = {"band": 0.09, "column": 0.5, "spot": 0.16}[shape]
        value = draws.pick((35, 90, 225, 245)) if channel == NIR else draws.pick((70, 90, 205, 225))
        across = draws.uniform(-0.6, 0.6)
        patches.append(Patch(channel, across, draws.uniform(0.15, 0.85), wide, high, value))
    return tuple(patches)


def _shade(draws: RandomChoices, colour: Visible) -> Visible:
    """One of the shades that a colour word covers."""
    brightness = draws.integer(-14, 14)
    red, green, blue = (min(max(level + brightness + draws.integer(-8, 8), 8), 244) for level in colour)
    return red, green, blue


def _choose_person(draws: RandomChoices) -> tuple[dict[str, str], dict[str, float], dict[str, Visible]]:
    """Attributes, proportions (shares of the body height) and visible colours of a person."""
    values = attribute_values("person")
    named = {name: draws.pick(choices) for name, choices in values.items()}
    named["age"] = draws.pick(("young", "young", "middle-aged", "middle-aged", "elderly", "child"))
    is_woman, age = named["gender"] == "woman", named["age"]
    named["hair"] = draws.pick(
        ("long", "ponytail", "bun", "short") if is_woman else ("short", "short", "bald", "long")
    )
    legs = (
        ("trousers", "trousers", "shorts", "skirt", "long skirt")
        if is_woman
        else ("trousers", "trousers", "shorts")
    )
    named["lower_garment"] = draws.pick(legs)
    for name, absent in (("bag", 0.3), ("hat", 0.6), ("glasses", 0.6), ("carried_object", 0.5)):
        named[name] = draws.pick_common(values[name], absent)
    build = {
        "head": draws.uniform(0.148, 0.162) + (0.05 if age == "child" else 0.0),
        "shoulder": draws.uniform(0.108, 0.132) - (0.016 if is_woman else 0.0),
        "waist": draws.uniform(0.078, 0.108) - (0.012 if is_woman else 0.0),
        "hip": draws.uniform(0.084, 0.104) + (0.01 if is_woman else 0.0),
        "crotch": draws.uniform(0.495, 0.535) + (0.03 if age == "child" else 0.0),
        "limb": draws.uniform(0.85, 1.2),
        "stoop": 0.03 if age == "elderly" else 0.0,
    }
    second = draws.pick([name for name in CLOTH_COLOURS if name != named["upper_colour"]])
    hair = GREY_HAIR if age == "elderly" else draws.pick(HAIR_COLOURS)
    cloth = {
        "upper": CLOTH_COLOURS[named["upper_colour"]],
        "upper_pattern": CLOTH_COLOURS[second],
        "lower": CLOTH_COLOURS[named["lower_colour"]],
        "shoes": CLOTH_COLOURS[named["shoes_colour"]],
        "bag": CLOTH_COLOURS[draws.pick(tuple(CLOTH_COLOURS))],
        "hat": CLOTH_COLOURS[draws.pick(tuple(CLOTH_COLOURS))],
        "carried": CLOTH_COLOURS[draws.pick(tuple(CLOTH_COLOURS))],
    }
    visible = {part: _shade(draws, colour) for part, colour in cloth.items()}
    visible |= {"skin": _shade(draws, draws.pick(SKIN_TONES)), "hair": _shade(draws, hair)}
    visible |= {"frame": (40, 40, 46), "glass": (32, 34, 40), "sole": (60, 58, 56)}
    return named, build, visible


def _choose_vehicle(draws: RandomChoices) -> tuple[dict[str, str], dict[str, float], dict[str, Visible]]:
    """Attributes, proportions (shares of the length) and visible colours of a vehicle."""
    values = attribute_values("vehicle")
    named = {name: draws.pick(choices) for name, choices in values.items()}
    for name, absent in (("damage", 0.45), ("accessory", 0.4)):
        named[name] = draws.pick_common(values[name], absent)
    tall = {"off-roader": 0.06, "van": 0.14, "pickup": 0.04}.get(named["type"], 0.0)
    build = {
        "height": draws.uniform(0.33, 0.37) + tall,
        "belt": draws.uniform(0.46, 0.54),
        "wheel": draws.uniform(0.068, 0.082) + tall * 0.12,
        "bonnet": draws.uniform(0.22, 0.28),
        "rake": draws.uniform(0.05, 0.11),
        "damaged_at": draws.uniform(-0.5, 0.5),
        "load": draws.uniform(0.1, 0.9),
    }
    paints, shoes = values["colour"], attribute_values("person")["shoes_colour"]
    second = draws.pick([name for name in paints if name != named["colour"]])
    paint = {
        "paint": CLOTH_COLOURS[named["colour"]],
        "paint_pattern": CLOTH_COLOURS[second],
        "panel": CLOTH_COLOURS[draws.pick(paints)],
        "cargo": CLOTH_COLOURS[draws.pick(tuple(CLOTH_COLOURS))],
        "accessory": CLOTH_COLOURS[draws.pick(shoes)],
        "hub": CLOTH_COLOURS[draws.pick(("grey", "black", "white"))],
    }
    visible = {part: _shade(draws, colour) for part, colour in paint.items()}
    visible |= {"glass": (52, 62, 70), "trim": (38, 38, 40), "tyre": (30, 30, 32), "lamp": (238, 234, 210)}
    visible |= {"rear_lamp": (168, 34, 34), "plate": (222, 220, 206), "bonnet": visible["paint"]}
    visible |= {"chrome": (190, 192, 196), "scratch": (150, 146, 140)}
    return named, build, visible
