# ruff: noqa: RUF001 - Chinese captions have Chinese punctuation.
import re

import pytest

from data_catalog.captions.redaction import redact

STAYS = (
    "",
    'A photo of a 4x4 SUV with 18" wheels and 20" rims.',
    "A black BMW X5 behind a white Ford F-150 and an Audi A4L.",
    "A white Mercedes-Benz GLC300, a red Peugeot 3008 and a blue BMW 320LI.",
    "A bus on route 305 with two doors.",
    "The man's bag and the boys' hats are red.",
    "A man reading a book says hello and reads a newspaper.",
    "A red car with a license plate and a BMW badge.",
    "A so-called MPV, seen by RGB, NIR and TIR cameras at 10:22 on 2023-05-14.",
    "A woman in her 30s with long hair, wearing size 42 shoes.",
    "一辆白色轿车停在路边。",
)

GOES = (
    (
        "A white SUV with the license plate 粤B12345 parked outside.",
        "A white SUV with the license plate parked outside.",
        {"plate": 1},
    ),
    (
        "A white SUV with license plate number ABC-1234 and black wheels.",
        "A white SUV with license plate number and black wheels.",
        {"plate": 1},
    ),
    ("The car is white and its license plate is ABC123.", "The car is white.", {"plate": 1}),
    (
        "The license plate reads 粤B·12345. The car is a black BMW X5.",
        "The car is a black BMW X5.",
        {"plate": 1},
    ),
    (
        'A yellow car. Its license plate number is "粤B 12345". It has a roof rack.',
        "A yellow car. It has a roof rack.",
        {"quote": 1},
    ),
    ("A car with license plate jk1234 outside.", "A car with license plate outside.", {"plate": 1}),
    ("A car with license plate number ab12cde.", "A car with license plate number.", {"plate": 1}),
    (
        "A car with a license plate that reads W 123 AB parked.",
        "A car with a license plate parked.",
        {"plate": 1},
    ),
    ("A car whose plate says 京A12345.", "A car.", {"plate": 1}),
    ("A man in a jersey with the number 23 on it.", "A man in a jersey.", {"number": 1}),
    ("A bag with the word Nike on it.", "A bag.", {"name": 1}),
    ("A van with the words FedEx on the side.", "A van.", {"name": 1}),
    ("A car AB12 CDE on a road.", "A car on a road.", {"plate": 1}),
    ("A car with plate GLC300.", "A car with plate.", {"plate": 1}),
    (
        "A car whose license plate is partially visible, ending in 45.",
        "A car whose license plate is partially visible.",
        {"plate": 1},
    ),
    ("A white car (plate ABC 1234) near a tree.", "A white car (plate) near a tree.", {"plate": 1}),
    ("一辆白色轿车，车牌号为粤B12345，停在路边。", "一辆白色轿车，停在路边。", {"plate": 1}),
    ("车牌：沪C·6J888", "", {"plate": 1}),
    ("A silver van with the words 出租车 on it.", "A silver van.", {"foreign": 1}),
    ('A man in a shirt with "NIKE" on the back.', "A man in a shirt.", {"quote": 1}),
    (
        "A man in a shirt that says “Just do it” and blue jeans.",
        "A man in a shirt and blue jeans.",
        {"quote": 1},
    ),
    ("A woman named Mary Jane Watson with long hair.", "A woman with long hair.", {"name": 1}),
    ("It is registered to Mr. John Smith, aged 40.", "It is registered, aged 40.", {"name": 1}),
    ("A sign reading SALE hangs behind a man.", "A sign hangs behind a man.", {"name": 1}),
    ("A van with contact@shop.com on the side, white.", "A van, white.", {"email": 1}),
    ("A yellow taxi, phone (555) 123-4567.", "A yellow taxi.", {"phone": 1}),
    ("A lorry with the number 13912345678 on it.", "A lorry.", {"phone": 1}),
)


@pytest.mark.parametrize("text", STAYS)
def test_text_that_is_not_personal_is_unchanged(text: str) -> None:
    assert redact(text).text == text
    assert redact(text).counts == {}


@pytest.mark.parametrize(("text", "left", "counts"), GOES)
def test_personal_text_goes_and_a_sentence_stays(text: str, left: str, counts: dict[str, int]) -> None:
    found = redact(text)
    assert (found.text, found.counts) == (left, counts)


@pytest.mark.parametrize("text", [left for _, left, _ in GOES])
def test_redacted_text_is_redacted_to_itself(text: str) -> None:
    assert redact(text).text == text


@pytest.mark.parametrize(
    "plate", ["粤B12345", "沪A·D1234", "京A 8K123", "ABC 1234", "ABC-123", "B12345", "AB12 CDE", "M-AB 1234"]
)
@pytest.mark.parametrize(
    "sentence",
    [
        "A red saloon with license plate {}.",
        "A red saloon with the number plate {}, and round lamps.",
        "Its plate reads {}; the car is red.",
        "License plate: {}",
        "A red saloon, plate number {}, seen from behind.",
    ],
)
def test_no_part_of_a_plate_stays_after_the_word_plate(sentence: str, plate: str) -> None:
    left = redact(sentence.format(plate)).text
    assert not re.search(r"\d", left), left
    assert not any(part in left for part in re.findall(r"[A-Z]{2,}|[\u4e00-\u9fff]", plate)), left
    assert not re.search(r"\s[,.;]|\s\s|[,;][,;.]|\ue000", left), left


def test_every_kind_is_counted() -> None:
    found = redact('A car with plate 粤B12345 and "TAXI" on the door, call +86 139 1234 5678 or me@x.cn.')
    assert found.counts == {"plate": 1, "quote": 1, "phone": 1, "email": 1}
    assert found.text.startswith("A car with plate")
