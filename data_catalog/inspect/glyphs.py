"""A font that has the characters of a text, among those that are installed.

Pillow's own font has Latin letters alone, while captions may be in any language (licence plates in Chinese).
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Found without an import, which takes a second.
_MATPLOTLIB = find_spec("matplotlib")
_DEJAVU = "mpl-data/fonts/ttf/DejaVuSans.ttf"

FONTS = (
    str(Path(_MATPLOTLIB.origin).parent / _DEJAVU if _MATPLOTLIB and _MATPLOTLIB.origin else _DEJAVU),
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "unifont.otf",
    "unifont.ttf",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "arialuni.ttf",
)
"""Files with many characters, the most legible first: the one that Matplotlib brings along, and those that
systems have; Pillow knows where they lie."""

_IN_NO_FONT = "\U0010ffff"


def legible(text: str, size: int) -> tuple[str, Font]:
    """The text as it can be drawn, and the font to draw it with.

    The font is the first that has all characters, or else the one that has most; what it lacks is written as
    `U+4EAC` in the text.

    Args:
        text: Any text.
        size: Size of the letters, pixels.
    """
    characters = set(text) - {" "}
    font = max(_fonts(size), key=lambda font: sum(_has(font, character) for character in characters))
    shown = (
        character if character == " " or _has(font, character) else f"U+{ord(character):04X} "
        for character in text
    )
    return "".join(shown), font


@cache
def _fonts(size: int) -> list[Font]:
    found: list[Font] = [ImageFont.load_default(size)]
    for file in FONTS:
        try:
            found.append(ImageFont.truetype(file, size))
        except OSError:
            # Not installed.
            continue
    return found


@cache
def _has(font: Font, character: str) -> bool:
    # A font draws all characters that it lacks alike.
    return bytes(font.getmask(character)) != bytes(font.getmask(_IN_NO_FONT))
