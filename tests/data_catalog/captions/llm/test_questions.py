import asyncio
import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_catalog.captions.llm.answers import Answer, AnswerStore
from data_catalog.captions.llm.asking import Asker
from data_catalog.captions.llm.budget import Budget, prompt_size
from data_catalog.captions.llm.captioner import choose
from data_catalog.captions.llm.client import LlmClient
from data_catalog.captions.llm.llm_settings import ClientSettings, LlmCaptionSettings
from data_catalog.captions.llm.prompts import prompt_images
from data_catalog.captions.llm.questions import Question, Questions
from data_catalog.captions.predicted_attributes import AttributePrediction
from data_catalog.cards import load_card
from data_catalog.errors import CatalogError
from tests.data_catalog.captions.llm.chat_server import (
    ChatServer,
    Reply,
    answer_schema,
    chat_server,
    fitting_answer,
)

CARD = load_card("synthetic_vehicle")
SETTINGS = LlmCaptionSettings(model="tiny", max_answer_tokens=300)
QUESTIONS = Questions(CARD, SETTINGS)
SOUND = {name: {"value": values[0], "confidence": 0.5} for name, values in CARD.attributes.items()}
OTHER = {name: {"value": values[1], "confidence": 0.5} for name, values in CARD.attributes.items()}


def jpeg(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="JPEG", quality=95, subsampling=0)
    return sink.getvalue()


def row(seed: int = 0, **changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = {
        name: jpeg(np.full((16, 8, 3), rng.integers(30, 220, 3), dtype=np.uint8))
        for name in ("rgb", "nir", "tir")
    }
    return {"sample_id": "train/a", **images, "side_by_side": None, **changed}


def predictions(**sources: dict[str, tuple[str, float]]) -> dict[str, dict[str, AttributePrediction]]:
    return {
        source: {
            name: AttributePrediction(value=value, confidence=confidence)
            for name, (value, confidence) in of.items()
        }
        for source, of in sources.items()
    }


DOUBT = predictions(
    RGB={"type": ("van", 0.9), "colour": ("red", 0.4), "lamps": ("unknown", 1.0)},
    NIR={"type": ("pickup", 0.3), "lamps": ("round", 0.2)},
    JOINT={"type": ("van", 0.5), "colour": ("blue", 0.6)},
)


def decoded(request: dict[str, Any]) -> np.ndarray:
    [part] = [part for part in request["messages"][1]["content"] if part["type"] == "image_url"]
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_each_modality_is_shown_alone_and_all_side_by_side() -> None:
    sample = row()
    shown = {source: question.request() for source, question in QUESTIONS.about(sample).items()}
    assert set(shown) == {"JOINT", "RGB", "NIR", "TIR"}
    alone = [np.asarray(Image.open(io.BytesIO(sample[name]))) for name in ("rgb", "nir", "tir")]
    for source, pixels in zip(("RGB", "NIR", "TIR"), alone, strict=True):
        np.testing.assert_array_equal(decoded(shown[source]), pixels)
    joint = decoded(shown["JOINT"])
    assert joint.shape == (16, 24, 3)
    np.testing.assert_allclose(joint, np.concatenate(alone, axis=1), atol=12)


def test_file_that_holds_three_images_is_cut_for_each() -> None:
    sample = row()
    alone = [np.asarray(Image.open(io.BytesIO(sample[name]))) for name in ("rgb", "nir", "tir")]
    joined = jpeg(np.concatenate(alone, axis=1))
    images = prompt_images(row(rgb=None, nir=None, tir=None, side_by_side=joined))
    assert images["JOINT"].jpeg() == joined
    for source, pixels in zip(("RGB", "NIR", "TIR"), alone, strict=True):
        cut = np.asarray(Image.open(io.BytesIO(images[source].jpeg())))
        np.testing.assert_allclose(cut, pixels, atol=12)
    assert len({image.digest for image in images.values()}) == 4


def test_schema_holds_the_cards_values_and_unknown() -> None:
    request = QUESTIONS.about(row())["RGB"].request()
    form = request["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    schema = form["json_schema"]["schema"]
    assert schema["required"] == list(CARD.attributes)
    assert schema["additionalProperties"] is False
    for name, values in CARD.attributes.items():
        of = schema["properties"][name]
        assert of["properties"]["value"]["enum"] == [*values, "unknown"]
        assert (of["properties"]["confidence"]["minimum"], of["properties"]["confidence"]["maximum"]) == (
            0,
            1,
        )
        assert of["required"] == ["value", "confidence"]
    assert (request["model"], request["temperature"], request["max_completion_tokens"]) == ("tiny", 0.0, 300)


def test_prompt_forbids_reading_text_where_captions_are_redacted() -> None:
    plain = QUESTIONS.about(row())["RGB"]
    discreet = Questions(CARD, SETTINGS.model_copy(update={"redact": True})).about(row())["RGB"]
    assert "licence plates" not in plain.instructions
    assert "Never read, use or repeat licence plates" in discreet.instructions
    assert plain.digest != discreet.digest


def test_digest_is_of_model_prompt_schema_and_image() -> None:
    def digest(sample: dict[str, Any] | None = None, card: str = "synthetic_vehicle", **changed: Any) -> str:
        asked = Questions(load_card(card), SETTINGS.model_copy(update=changed))
        return asked.about(sample or row())["RGB"].digest

    assert digest() == digest()
    others = [
        digest(row(1)),
        digest(card="synthetic_person"),
        digest(model="other"),
        digest(temperature=None),
        digest(max_answer_tokens=301),
        QUESTIONS.about(row())["NIR"].digest,
    ]
    assert len({digest(), *others}) == 7
    # Another sample with the same visible-light image asks the same question.
    assert digest(row(1, rgb=row()["rgb"])) == digest()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"type": {"value": "tank", "confidence": 0.5}}, "type: 'tank' is not among its values"),
        ({"type": {"value": 3, "confidence": 0.5}}, "type: 3 is not among its values"),
        ({"type": {"value": "van", "confidence": 1.5}}, "type: confidence 1.5 is not from 0 to 1"),
        ({"type": {"value": "van", "confidence": "high"}}, "type: confidence 'high' is not a number"),
        ({"type": {"value": "van", "confidence": True}}, "type: confidence True is not a number"),
        ({"type": {"value": "van"}}, "type is not an object of value and confidence"),
        ({"type": "van"}, "type is not an object of value and confidence"),
    ],
)
def test_wrong_attribute_is_named_and_the_others_are_kept(changed: dict[str, Any], message: str) -> None:
    values, wrong = QUESTIONS.about(row())["RGB"].read(json.dumps({**SOUND, **changed}))
    assert wrong == [message]
    assert values == {name: value for name, value in SOUND.items() if name != "type"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("A red van.", ["it holds no JSON object"]),
        ("[1]", ["it holds no JSON object"]),
        ("[" * 100_000, ["it holds no JSON object"]),
        ('{"type":' * 100_000, ["it holds no JSON object"]),
        (json.dumps(SOUND).replace("0.5", "NaN"), ["it holds no JSON object"]),
        (json.dumps(SOUND)[:-3], ["it holds no JSON object"]),
        (json.dumps({**SOUND, "tail": {}}), ["attribute 'tail' was not asked for"]),
        (f"{json.dumps(SOUND)} or {json.dumps(OTHER)}", ["it holds several JSON objects that differ"]),
        (f"<think>{json.dumps(SOUND)} is what I would", ["it holds no JSON object"]),
    ],
    ids=["words", "list", "nested", "open", "NaN", "cut", "more", "two", "thinking"],
)
def test_answer_of_another_form_is_described(text: str, wrong: list[str]) -> None:
    assert QUESTIONS.about(row())["RGB"].read(text)[1] == wrong


@pytest.mark.parametrize(
    "text",
    [
        "<think>A van? Say {draft}, or {other}.</think>{answer}",
        # vLLM without a parser for the model: its template holds the opening tag.
        "First {other}. No.\n</think>\n\n```json\n{answer}\n```",
        "<reasoning>{other}</reasoning>\nThe object is:\n{answer}\nIs there anything else?",
        "Of the set {{type, colour}} I see:\n```\n{answer}\n```\nHere it is again: {answer}",
        "My notes are {draft}. The answer: {answer}",
    ],
)
def test_answer_is_found_among_thoughts_and_prose(text: str) -> None:
    drafts = {"draft": json.dumps({"type": SOUND["type"]}), "other": json.dumps(OTHER)}
    values, wrong = QUESTIONS.about(row())["RGB"].read(
        text.format(answer=json.dumps(SOUND, indent=1), **drafts)
    )
    assert (values, wrong) == (SOUND, [])


def test_case_and_fence_do_not_matter() -> None:
    fenced = "```json\n" + json.dumps({**SOUND, "brand": {"value": " aLDER", "confidence": 1}}) + "\n```"
    values, wrong = QUESTIONS.about(row())["RGB"].read(fenced)
    assert wrong == []
    assert values["brand"] == {"value": "Alder", "confidence": 1}


def test_choice_offers_predicted_values_and_accepts_no_others() -> None:
    question = QUESTIONS.choice(DOUBT)
    assert question is not None
    assert question.image is None
    assert "- type: JOINT van 0.50; RGB van 0.90; NIR pickup 0.30" in question.text
    assert "a {colour} {brand} {type|vehicle}" in question.text
    answer = {"type": "pickup", "colour": "green", "lamps": "round", "brand": "Alder"}
    values, wrong = question.read(json.dumps(answer))
    assert values == {"type": "pickup", "lamps": "round"}
    assert wrong == ["colour: 'green' was offered by no reader"]
    assert question.read(json.dumps({**answer, "colour": "unknown"}))[1] == [
        "colour: 'unknown' was offered by no reader"
    ]


def test_step_two_is_not_asked_where_there_is_no_choice() -> None:
    agreed = predictions(RGB={"type": ("van", 0.9)}, NIR={"type": ("van", 0.1), "lamps": ("unknown", 1.0)})
    assert QUESTIONS.choice(agreed) is None
    assert QUESTIONS.choice({}) is None


def test_chosen_value_has_the_confidence_of_its_best_source() -> None:
    counts = Counter[str]()
    filled = choose(DOUBT, {"type": "pickup", "lamps": "round"}, counts)
    found = {name: (value.value, value.confidence, value.source) for name, value in filled.items()}
    assert found == {
        "type": ("pickup", 0.3, "NIR"),
        # The model chose none, so the most confident prediction stands.
        "colour": ("blue", 0.6, "JOINT"),
        "lamps": ("round", 0.2, "NIR"),
    }
    assert counts == {"llm": 1, "rules": 1, "one": 1}
    assert choose(DOUBT, {"type": "tank"})["type"].value == "van"
    assert choose(DOUBT, None)["type"].value == "van"


def ask(
    server: ChatServer, store: AnswerStore, *questions: Question, reasks: int = 2
) -> tuple[list[Answer], Counter[str]]:
    """The answers to questions that are all asked at once, and why some were asked again."""

    async def run() -> tuple[list[Answer], Counter[str]]:
        settings = ClientSettings(endpoint=server.url, reasks=reasks, first_wait_seconds=0.01)
        client = LlmClient(settings, Budget(None, None, 300))
        asker = Asker(client, store)
        try:
            return list(await asyncio.gather(*(asker.ask(question) for question in questions))), asker.faults
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    return AnswerStore(str(tmp_path / "answers"))


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply("A red van."), "malformed"),
        (Reply(json.dumps(SOUND)[:40], finish_reason="length"), "cut"),
        (Reply(refusal="I cannot."), "refused"),
        (Reply("  "), "empty"),
    ],
)
def test_unusable_answer_is_asked_for_again_and_then_left_unknown(
    store: AnswerStore, reply: Reply, kind: str
) -> None:
    question = QUESTIONS.about(row())["RGB"]
    with chat_server(lambda number, request: reply if number < 2 else None) as server:
        [answer], faults = ask(server, store, question)
        assert len(server.requests) == 3
        assert faults == {kind: 2}
        assert answer.values.keys() == CARD.attributes.keys()
        assert (answer.fault, answer.requests, answer.prompt_tokens) == ("", 3, 3000)
    with chat_server(lambda number, request: reply) as server:
        other = QUESTIONS.about(row(1))["RGB"]
        [answer], _ = ask(server, store, other, reasks=1)
        assert len(server.requests) == 2
        assert (answer.values, answer.fault, answer.requests) == ({}, kind, 2)
    # It is not kept: the endpoint may be corrected.
    with chat_server() as server:
        assert ask(server, store, other, question)[0][0].values.keys() == CARD.attributes.keys()
        assert len(server.requests) == 1


def test_model_is_asked_again_with_what_was_wrong(store: AnswerStore) -> None:
    wrong = json.dumps({**SOUND, "type": {"value": "tank", "confidence": 0.5}})
    with chat_server(lambda number, request: Reply(wrong) if number == 0 else None) as server:
        ask(server, store, QUESTIONS.about(row())["RGB"])
    first, second = (request["messages"] for request in server.requests)
    assert second[: len(first)] == first
    assert second[len(first)] == {"role": "assistant", "content": wrong}
    assert "type: 'tank' is not among its values" in second[len(first) + 1]["content"]


def test_usable_part_of_the_best_answer_is_kept(store: AnswerStore) -> None:
    parts = [{"type": SOUND["type"]}, {name: SOUND[name] for name in ("type", "colour")}, {}]
    with chat_server(lambda number, request: Reply(json.dumps(parts[number]))) as server:
        [answer], _ = ask(server, store, QUESTIONS.about(row())["RGB"])
    assert answer.values == parts[1]
    assert answer.fault == "malformed"


def test_same_image_in_two_samples_is_asked_about_once(store: AnswerStore) -> None:
    question, same = QUESTIONS.about(row())["RGB"], QUESTIONS.about(row(1, rgb=row()["rgb"]))["RGB"]
    with chat_server() as server:
        [first, second], _ = ask(server, store, question, same)
    assert first == second
    assert len(server.requests) == 1


def test_answer_is_read_as_the_model_gave_it(store: AnswerStore) -> None:
    with chat_server() as server:
        [answer], _ = ask(server, store, QUESTIONS.about(row())["NIR"])
        [request] = server.requests
    assert answer.values == json.loads(fitting_answer(request))
    assert answer_schema(request).keys() == answer.values.keys()
    assert answer.images == prompt_size(request).images
    assert len(answer.images) == 1
    assert store.read(QUESTIONS.about(row())["NIR"].digest) == answer


def test_file_that_holds_no_answer_is_named(store: AnswerStore) -> None:
    store.write("ab" * 32, Answer(values={}, requests=1, prompt_tokens=1, completion_tokens=1))
    [path] = Path(store.root).rglob("*.json")
    assert store.digests() == {"ab" * 32}
    path.write_text('{"values": 3}')
    with pytest.raises(CatalogError, match=r"ab\.json holds no answer \(values: .*delete the file"):
        store.read("ab" * 32)
    assert store.read("cd" * 32) is None


def test_answers_lie_in_the_data_sets_folder_of_any_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert AnswerStore.of_dataset("catalog", "d").root == str(tmp_path / "catalog" / "d" / "answers")
    uri = "s3://bucket/catalog?endpoint_override=127.0.0.1:9&scheme=http"
    assert AnswerStore.of_dataset(uri, "d").root == uri.replace("catalog", "catalog/d/answers")
