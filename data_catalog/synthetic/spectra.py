"""How bright each part of a person or a vehicle can be where the eye does not see.

Two cloths of one colour may reflect near infrared quite differently, and one is warmer than the
other; the ranges here are drawn from independently of the visible colour.
"""

from collections.abc import Mapping

from data_catalog.synthetic.settings import Kind

_CLOTH_NIR, _CLOTH_TIR = (50, 215), (112, 182)
NIR_RANGES: Mapping[Kind, Mapping[str, tuple[int, int]]] = {
    "person": {
        "upper": _CLOTH_NIR,
        "upper_pattern": _CLOTH_NIR,
        "lower": _CLOTH_NIR,
        "shoes": _CLOTH_NIR,
        "bag": _CLOTH_NIR,
        "hat": _CLOTH_NIR,
        "carried": _CLOTH_NIR,
        "skin": (172, 196),
        "hair": (50, 150),
        "frame": (30, 60),
        "glass": (60, 120),
        "sole": (60, 90),
    },
    "vehicle": {
        "paint": _CLOTH_NIR,
        "paint_pattern": _CLOTH_NIR,
        "panel": _CLOTH_NIR,
        "cargo": _CLOTH_NIR,
        "accessory": _CLOTH_NIR,
        "hub": (60, 200),
        "glass": (30, 110),
        "trim": (40, 70),
        "tyre": (35, 55),
        "lamp": (200, 250),
        "rear_lamp": (110, 200),
        "plate": (200, 250),
        "bonnet": _CLOTH_NIR,
        "chrome": (170, 210),
        "scratch": (120, 200),
    },
}
"""What each part can reflect in near infrared (smallest, largest)."""

TIR_RANGES: Mapping[Kind, Mapping[str, tuple[int, int]]] = {
    "person": {
        "upper": _CLOTH_TIR,
        "upper_pattern": _CLOTH_TIR,
        "lower": _CLOTH_TIR,
        "shoes": (90, 160),
        "bag": (60, 130),
        "hat": (110, 180),
        "carried": (40, 220),
        "skin": (212, 230),
        "hair": (140, 185),
        "frame": (110, 130),
        "glass": (80, 110),
        "sole": (70, 110),
    },
    "vehicle": {
        "paint": (85, 165),
        "paint_pattern": (85, 165),
        "panel": (70, 170),
        "cargo": (50, 190),
        "accessory": (60, 140),
        "hub": (110, 220),
        "glass": (50, 90),
        "trim": (80, 150),
        "tyre": (120, 190),
        "lamp": (120, 230),
        "rear_lamp": (100, 200),
        "plate": (70, 110),
        "bonnet": (110, 240),
        "chrome": (90, 220),
        "scratch": (80, 150),
    },
}
"""How warm each part can look in thermal infrared (smallest, largest)."""
