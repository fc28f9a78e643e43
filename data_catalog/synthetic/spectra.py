"""How bright each part of a person or a vehicle can be in near infrared, and how warm in thermal infrared.

Two cloths of one colour may reflect near infrared quite differently, and one may be warmer than the other, so
values are chosen from these ranges independently of the visible colour.
"""

from collections.abc import Mapping

from data_catalog.synthetic.synthetic_settings import Kind

Range = tuple[int, int]
"""Smallest and largest value, 0 to 255."""

_CLOTH_NIR, _CLOTH_TIR = (50, 215), (112, 182)

INFRARED_RANGES: Mapping[Kind, Mapping[str, tuple[Range, Range]]] = {
    "person": {
        "upper": (_CLOTH_NIR, _CLOTH_TIR),
        "upper_pattern": (_CLOTH_NIR, _CLOTH_TIR),
        "lower": (_CLOTH_NIR, _CLOTH_TIR),
        "shoes": (_CLOTH_NIR, (90, 160)),
        "bag": (_CLOTH_NIR, (60, 130)),
        "hat": (_CLOTH_NIR, (110, 180)),
        "carried": (_CLOTH_NIR, (40, 220)),
        "skin": ((172, 196), (212, 230)),
        "hair": ((50, 150), (140, 185)),
        "frame": ((30, 60), (110, 130)),
        "glass": ((60, 120), (80, 110)),
        "sole": ((60, 90), (70, 110)),
    },
    "vehicle": {
        "paint": (_CLOTH_NIR, (85, 165)),
        "paint_pattern": (_CLOTH_NIR, (85, 165)),
        "panel": (_CLOTH_NIR, (70, 170)),
        "cargo": (_CLOTH_NIR, (50, 190)),
        "accessory": (_CLOTH_NIR, (60, 140)),
        "hub": ((60, 200), (110, 220)),
        "glass": ((30, 110), (50, 90)),
        "trim": ((40, 70), (80, 150)),
        "tyre": ((35, 55), (120, 190)),
        "lamp": ((200, 250), (120, 230)),
        "rear_lamp": ((110, 200), (100, 200)),
        "plate": ((200, 250), (70, 110)),
        "bonnet": (_CLOTH_NIR, (110, 240)),
        "chrome": ((170, 210), (90, 220)),
        "scratch": ((120, 200), (80, 150)),
    },
}
"""What each part can reflect in near infrared, and how warm it can look in thermal infrared."""
