import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_catalog.inspect import glyphs
from data_catalog.inspect.contact_sheet_drawing import Cell, draw_cell
from data_catalog.inspect.glyphs import legible

CYRILLIC, GREEK = "человек в красном", "άνθρωπος"
CHINESE = "车牌京A12345,红色轿车"


def boxes(text: str, font: glyphs.Font) -> int:
    """How many characters are drawn as the box of those that a font lacks, by the pixels."""

    def pixels(character: str) -> bytes:
        picture = Image.new("L", (60, 60))
        ImageDraw.Draw(picture).text((10, 10), character, 255, font)
        return picture.tobytes()

    return sum(pixels(character) == pixels("\U0010fffe") for character in text)


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test chooses the fonts that there are."""
    glyphs._fonts.cache_clear()
    yield
    monkeypatch.undo()
    glyphs._fonts.cache_clear()


def test_greek_and_cyrillic_need_no_installed_font(fonts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "FONTS", glyphs.FONTS[:1])
    for text in (CYRILLIC, GREEK):
        assert legible(text, 14)[0] == text


@pytest.mark.parametrize("text", [CYRILLIC, GREEK, CHINESE, "a man", "naïve façade", "人 in red", "\u0378"])
def test_no_character_is_drawn_as_a_box(text: str) -> None:
    shown, font = legible(text, 14)
    assert boxes(shown, font) == 0


def test_latin_text_has_the_font_that_it_had() -> None:
    text = "A photo of a man, 0.25 (2 hats)."
    shown, font = legible(text, 14)
    assert shown == text
    assert font.getmask(text).getbbox() == ImageFont.load_default(14).getmask(text).getbbox()


def test_installed_font_is_used_where_it_has_more(fonts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "FONTS", ("nowhere.ttf", glyphs.FONTS[0]))
    shown, font = legible(GREEK, 14)
    assert (shown, font.getname()[0]) == (GREEK, "DejaVu Sans")


def test_what_no_font_has_is_written_as_its_code(fonts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "FONTS", ())
    assert legible("京A 1", 14)[0] == "U+4EAC A 1"


def test_long_text_without_spaces_is_broken_into_lines(fonts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    triplet = np.full((3, 32, 16, 3), 90, dtype=np.uint8)

    def height(caption: str) -> int:
        return draw_cell(Cell("test/a", "", triplet, None, None, caption)).height

    assert height("short") < height("w" * 100) <= height("w" * 1000) == height("wide words " * 100)
