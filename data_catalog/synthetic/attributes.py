"""The words of the benchmark: attributes, their values, and the colours that the colour words mean."""

from collections.abc import Mapping
from types import MappingProxyType

from data_catalog.synthetic.settings import Kind

Visible = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

CLOTH_COLOURS: Mapping[str, Visible] = MappingProxyType(
    {
        "black": (34, 34, 38),
        "grey": (128, 128, 130),
        "white": (226, 226, 222),
        "red": (178, 42, 44),
        "orange": (214, 120, 40),
        "yellow": (222, 190, 66),
        "green": (62, 122, 66),
        "blue": (52, 98, 172),
        "navy": (36, 46, 88),
        "purple": (112, 66, 132),
        "pink": (216, 142, 162),
        "brown": (112, 76, 50),
        "beige": (204, 184, 148),
    }
)
SHOE_COLOURS: tuple[str, ...] = ("black", "white", "brown", "grey", "red", "blue")
PAINT_COLOURS: tuple[str, ...] = (
    "white",
    "black",
    "grey",
    "red",
    "blue",
    "green",
    "yellow",
    "brown",
    "beige",
)

_PERSON = {
    "gender": ("man", "woman"),
    "age": ("young", "middle-aged", "elderly", "child"),
    "hair": ("short", "long", "ponytail", "bun", "bald"),
    "upper_garment": ("t-shirt", "shirt", "jacket", "coat", "hoodie", "vest"),
    "upper_colour": tuple(CLOTH_COLOURS),
    "lower_garment": ("trousers", "shorts", "skirt", "long skirt"),
    "lower_colour": tuple(CLOTH_COLOURS),
    "shoes": ("trainers", "boots", "sandals"),
    "shoes_colour": SHOE_COLOURS,
    "bag": ("none", "backpack", "shoulder bag", "handbag"),
    "hat": ("none", "cap", "beanie", "sun hat"),
    "glasses": ("none", "glasses", "sunglasses"),
    "carried_object": ("none", "umbrella", "suitcase", "box", "bottle"),
}
_VEHICLE = {
    "type": ("saloon", "hatchback", "estate", "off-roader", "van", "pickup"),
    "colour": PAINT_COLOURS,
    "brand": ("Alder", "Birch", "Cedar", "Linden", "Rowan"),
    "lamps": ("round", "square", "slim", "twin"),
    "damage": ("none", "dented door", "scratched bumper", "odd panel"),
    "accessory": ("none", "roof rack", "roof box", "taxi sign", "ladder"),
}


def person_attributes() -> dict[str, tuple[str, ...]]:
    """The 13 attributes of a person and the values that each can take."""
    return dict(_PERSON)


def vehicle_attributes() -> dict[str, tuple[str, ...]]:
    """The 6 attributes of a vehicle and the values that each can take. The brands are invented."""
    return dict(_VEHICLE)


def attributes_of(kind: Kind) -> dict[str, tuple[str, ...]]:
    """The attributes of people or of vehicles and the values that each can take."""
    return person_attributes() if kind == "person" else vehicle_attributes()
