import json
from pathlib import Path
from typing import Any

import open_clip
import pytest

from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.captions.predicted_attributes import SOURCES, AttributePrediction, fill, load_predictions
from data_catalog.captions.sentences import PERSON, TEMPLATES, VEHICLE, write_caption
from data_catalog.cards import card_names, load_card
from data_catalog.errors import CatalogError
from tests.data_catalog.folders import sample_ids


def predictions(**sources: dict[str, tuple[str, float]]) -> dict[str, dict[str, AttributePrediction]]:
    return {
        source: {
            name: AttributePrediction(value=value, confidence=confidence)
            for name, (value, confidence) in found.items()
        }
        for source, found in sources.items()
    }


def naive_fill(found: dict[str, dict[str, dict[str, Any]]]) -> dict[str, tuple[str, float, str]]:
    """The rule, attribute by attribute, as one would write it down."""
    best: dict[str, tuple[str, float, str]] = {}
    for name in ("gender", "hair", "hat", "upper_colour"):
        for source in ("JOINT", "RGB", "NIR", "TIR"):
            reading = found.get(source, {}).get(name)
            if reading is None or reading["value"].strip().lower() in ("", "unknown"):
                continue
            if name not in best or reading["confidence"] > best[name][1]:
                best[name] = (reading["value"], reading["confidence"], source)
    return best


def test_most_confident_source_wins() -> None:
    filled = fill(
        predictions(RGB={"hair": ("long", 0.6)}, NIR={"hair": ("bun", 0.7)}, JOINT={"hair": ("short", 0.5)})
    )
    assert (filled["hair"].value, filled["hair"].confidence, filled["hair"].source) == ("bun", 0.7, "NIR")


def test_unknown_never_beats_a_value() -> None:
    filled = fill(
        predictions(JOINT={"hair": ("Unknown", 1.0)}, RGB={"hair": (" ", 1.0)}, TIR={"hair": ("bun", 0.0)})
    )
    assert filled["hair"].value == "bun"
    assert fill(predictions(JOINT={"hair": ("unknown", 1.0)})) == {}


@pytest.mark.parametrize("position", range(len(SOURCES) - 1))
def test_of_equal_confidences_the_earlier_source_wins(position: int) -> None:
    earlier, later = SOURCES[position], SOURCES[position + 1]
    filled = fill(predictions(**{later: {"hair": ("bun", 0.5)}, earlier: {"hair": ("long", 0.5)}}))
    assert filled["hair"].source == earlier


def test_filling_is_that_of_a_plain_loop(built: Any, read_predictions: dict[str, Any]) -> None:
    rows = built.captions.read().to_pylist()
    assert [row["sample_id"] for row in rows] == sample_ids()
    known = 0
    for row in rows:
        expected = naive_fill(read_predictions[row["sample_id"]])
        found = {
            entry["name"]: (entry["value"], pytest.approx(entry["confidence"]), entry["source"])
            for entry in row["attributes"]
        }
        assert found == expected
        assert row["caption"] == write_caption({name: value[0] for name, value in expected.items()}, PERSON)
        known += len(expected)
    total = len(rows) * 13
    assert built.captions.statistics["unknown"]["filled"] == pytest.approx(1 - known / total)
    for source in SOURCES:
        read = sum(
            reading["value"].strip().lower() not in ("", "unknown")
            for found in read_predictions.values()
            for reading in found.get(source, {}).values()
        )
        assert built.captions.statistics["unknown"][source] == pytest.approx(1 - read / total)


def test_caption_of_a_person_reads_well() -> None:
    attributes = {
        "gender": "woman",
        "age": "elderly",
        "hair": "ponytail",
        "upper_garment": "hoodie",
        "upper_colour": "orange",
        "lower_garment": "long skirt",
        "lower_colour": "navy",
        "shoes": "trainers",
        "shoes_colour": "white",
        "bag": "none",
        "hat": "cap",
        "glasses": "sunglasses",
        "carried_object": "umbrella",
    }
    assert write_caption(attributes, PERSON) == (
        "A photo of an elderly woman with a ponytail, wearing an orange hoodie, a navy long skirt, white "
        "trainers, a cap and sunglasses, carrying an umbrella."
    )


@pytest.mark.parametrize(
    ("attributes", "caption"),
    [
        ({}, ""),
        ({"hair": "long"}, "A photo of a person with long hair."),
        ({"hat": "none"}, "A photo of a person."),
        ({"age": "child", "gender": "man"}, "A photo of a boy."),
        ({"upper_colour": "red"}, "A photo of a person, wearing a red top."),
        ({"lower_garment": "shorts"}, "A photo of a person, wearing shorts."),
        ({"gender": "man", "bag": "backpack"}, "A photo of a man, carrying a backpack."),
        ({"hair": "bald", "shoes_colour": "red"}, "A photo of a person with a bald head, wearing red shoes."),
    ],
)
def test_caption_says_only_what_is_known(attributes: dict[str, str], caption: str) -> None:
    assert write_caption(attributes, PERSON) == caption


@pytest.mark.parametrize(
    ("attributes", "caption"),
    [
        (
            {"type": "estate", "colour": "red", "brand": "Alder", "lamps": "twin", "damage": "odd panel"},
            "A photo of a red Alder estate with twin lamps and an odd panel.",
        ),
        ({"type": "off-roader", "damage": "none"}, "A photo of an off-roader."),
        ({"accessory": "roof rack"}, "A photo of a vehicle with a roof rack."),
    ],
)
def test_caption_of_a_vehicle_reads_well(attributes: dict[str, str], caption: str) -> None:
    assert write_caption(attributes, VEHICLE) == caption


@pytest.mark.parametrize("name", card_names())
def test_longest_caption_of_a_card_fits_into_clips_77_tokens(name: str) -> None:
    card = load_card(name)
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    longest = {
        attribute: max(values, key=lambda value: len(tokenizer.encode(value)))
        for attribute, values in card.attributes.items()
    }
    assert len(tokenizer.encode(write_caption(longest, TEMPLATES[card.kind]))) <= 75


def test_sample_without_predictions_has_an_empty_caption(built: Any, own_source: Path) -> None:
    path = own_source / "readings" / "val.jsonl"
    lines = path.read_text().splitlines()
    elsewhere = json.dumps({"item": "000099_cam1_0_00.jpg", "readings": {}})
    path.write_text("\n".join([*lines[1:], elsewhere]))
    captions = make_captions(built.samples, own_source / "readings")
    [row] = [row for row in captions.read().to_pylist() if not row["attributes"]]
    assert row["sample_id"] == f"val/{json.loads(lines[0])['item'].removesuffix('.jpg')}"
    assert row["caption"] == ""
    assert [captions.statistics[name] for name in ("missing", "empty", "unused")] == [1, 1, 1]


def test_value_that_holds_personal_text_is_left_out(built: Any, own_source: Path) -> None:
    path = own_source / "readings" / "val.jsonl"
    first, *rest = path.read_text().splitlines()
    item = json.loads(first)["item"]
    predicted = {
        "JOINT": {
            "hat": {"value": "cap with 粤B12345", "confidence": 1},
            "hair": {"value": "bun", "confidence": 1},
        }
    }
    path.write_text("\n".join([json.dumps({"item": item, "readings": predicted}), *rest]))
    captions = make_captions(built.samples, own_source / "readings", CaptionSettings(redact=True))
    [row] = [
        row for row in captions.read().to_pylist() if row["sample_id"] == f"val/{item.removesuffix('.jpg')}"
    ]
    assert row["caption"] == "A photo of a person with a bun."
    assert [entry["name"] for entry in row["attributes"]] == ["hair"]
    assert captions.statistics["redactions"] == {"plate": 1}
    assert "redact" not in built.captions.manifest.settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"item": ' + "1" * 5_000 + "}", "is not JSON"),
        (
            '{"item": "a.jpg", "readings": {"RGB": {"hair": {"value": "\\ud83d", "confidence": 1}}}}',
            "is not JSON in UTF-8",
        ),
        ("[1]", "the line: Input should be"),
        ('{"item": "a.jpg"}', "readings: Field required"),
        ('{"item": "a.jpg", "readings": {"UV": {}}}', "source 'UV' is not known"),
        (
            '{"item": "a.jpg", "readings": {"RGB": {"tail": {"value": "x", "confidence": 1}}}}',
            "attribute 'tail' is not on the card",
        ),
        (
            '{"item": "a.jpg", "readings": {"RGB": {"hair": {"value": "x", "confidence": 1.5}}}}',
            "readings.RGB.hair.confidence",
        ),
        (
            '{"item": "a.jpg", "readings": {"RGB": {"hair": {"value": "x", "confidence": NaN}}}}',
            "readings.RGB.hair.confidence",
        ),
        (
            '{"item": "a.jpg", "readings": {"RGB": {"hair": {"value": null, "confidence": 1}}}}',
            "readings.RGB.hair.value",
        ),
        ('{"item": "000011_cam1_0_00.jpg", "readings": {}}', "was read before"),
    ],
)
def test_malformed_prediction_names_file_and_line(
    built: Any, own_source: Path, line: str, message: str
) -> None:
    path = own_source / "readings" / "val.jsonl"
    path.write_text(path.read_text() + line)
    with pytest.raises(CatalogError, match=r"val\.jsonl line 9") as error:
        make_captions(built.samples, own_source / "readings")
    assert message in str(error.value)


def test_dots_in_the_name_of_an_item_are_no_ending(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(
        "".join(f'{{"item": "{item}", "readings": {{}}}}\n' for item in ("p1.c1", "p1.c2", "p1.c3.tif"))
    )
    found = load_predictions(tmp_path, {}, ["test"], [])
    assert list(found.samples) == ["test/p1.c1", "test/p1.c2", "test/p1.c3"]


def test_missing_predictions_and_unknown_card_are_named(built: Any, own_source: Path) -> None:
    (own_source / "readings" / "test.jsonl").unlink()
    with pytest.raises(CatalogError, match=r"holds no test\.jsonl"):
        make_captions(built.samples, own_source / "readings")
    with pytest.raises(CatalogError, match=r"card 'cats' is not known; use one of .*rgbnt201"):
        make_captions(built.samples, own_source / "readings", CaptionSettings(card="cats"))
