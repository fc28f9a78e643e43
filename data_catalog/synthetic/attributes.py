"""Attributes of generated people and vehicles, and the colours that colour words mean."""

from collections.abc import Mapping
from types import MappingProxyType

from data_catalog.cards import load_card
from data_catalog.synthetic.synthetic_settings import Kind

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


def attribute_values(kind: Kind) -> Mapping[str, tuple[str, ...]]:
    """The attributes of people or of vehicles and the values that each can take, as on the card.

    Their order enters the random choices, so another order gives other identities.
    """
    return load_card(f"synthetic_{kind}").attributes
