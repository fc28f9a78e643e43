"""What a multi-modal language model is asked about a sample, and what of its answers is usable.

Step one, four questions: each modality's image, and the three side by side, to a value and a confidence per
attribute of the card. Step two, one question without images: given all those predictions and the template of
the sentence, which value to believe of each attribute. A value that no source offered is not accepted. The
sentence itself is written from the chosen values by `data_catalog.captions.sentences`: what a model wrote
freely could not be checked.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from data_catalog.captions.llm.llm_settings import LlmCaptionSettings
from data_catalog.captions.llm.prompts import (
    PromptImage,
    choice_instructions,
    choice_text,
    prediction_instructions,
    prediction_text,
    prompt_images,
)
from data_catalog.captions.predicted_attributes import (
    SOURCES,
    UNKNOWN,
    AttributePrediction,
    Predictions,
)
from data_catalog.cards import Card
from data_catalog.tables.digests import json_digest

Values = dict[str, Any]
"""Attribute to what was said of it, checked."""

_TAGS = "think|thinking|thought|reasoning"
_THOUGHTS = re.compile(rf"<({_TAGS})>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHTS_END = re.compile(rf"</(?:{_TAGS})>", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question to a model.

    Attributes:
        source: Which source it asks about, or `choice` for step two.
        settings: Which model is asked, and how it samples its answer.
        instructions: The system's message.
        text: The user's message.
        schema: JSON schema of the answer.
        check: From the answer's JSON object to the usable values, and a list of what is wrong with it.
        image: The image that goes with it, where one does.
    """

    source: str
    settings: LlmCaptionSettings
    instructions: str
    text: str
    schema: Mapping[str, Any]
    check: Callable[[Mapping[str, Any]], tuple[Values, list[str]]] = field(compare=False, repr=False)
    image: PromptImage | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over model, prompt, schema and image bytes."""
        return json_digest(
            {
                "model": self.settings.sampling,
                "instructions": self.instructions,
                "text": self.text,
                "schema": self.schema,
                "picture": None if self.image is None else self.image.digest,
            }
        )

    def request(self) -> dict[str, Any]:
        """The question as the arguments of `chat.completions.create`."""
        content: list[dict[str, Any]] = [{"type": "text", "text": self.text}]
        if self.image is not None:
            data = base64.b64encode(self.image.jpeg()).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
        temperature = self.settings.temperature
        return {
            "model": self.settings.model,
            "messages": [
                {"role": "system", "content": self.instructions},
                {"role": "user", "content": content},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "attributes", "strict": True, "schema": self.schema},
            },
            "max_completion_tokens": self.settings.max_answer_tokens,
            **({} if temperature is None else {"temperature": temperature}),
        }

    def read(self, text: str) -> tuple[Values, list[str]]:
        """The usable values of an answer, and what is wrong with it."""
        checked = [self.check(found) for found in _json_objects(_without_thoughts(text))]
        if len(checked) == 1:
            return checked[0]
        # Prose around the answer may hold braces of its own.
        sound = [answer for answer in checked if not answer[1]]
        usable = sound or [answer for answer in checked if answer[0]]
        if not usable:
            return {}, ["it holds no JSON object"]
        if any(answer != usable[0] for answer in usable):
            return {}, ["it holds several JSON objects that differ"]
        return usable[0]


def _without_thoughts(text: str) -> str:
    """What a model that thinks aloud says after it; "" where it was cut off while it thought."""
    # Some endpoints put the opening tag into the prompt, so that an answer has the closing one alone.
    return _THOUGHTS_END.split(_THOUGHTS.sub("", text))[-1]


def _json_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects in a text that are in no other, from the left."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except RecursionError:
            return
        except ValueError:
            end = start + 1
        else:
            yield value
        start = text.find("{", end)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True)
class Questions:
    """Makes the questions about samples of a data set.

    Attributes:
        card: Its attributes and their values.
        settings: Which model is asked, for which steps, and whether it may read text in the images.
    """

    card: Card
    settings: LlmCaptionSettings

    @property
    def schema_digest(self) -> str:
        """SHA-256 over both steps' schemas; another one asks for other captions."""
        return json_digest([self._prediction_schema, self._choice_schema])

    def about(self, row: Mapping[str, Any]) -> dict[str, Question]:
        """Step one: source to question.

        Args:
            row: The sample, with ROW_COLUMNS.
        """
        instructions = prediction_instructions(self.card.kind, self.settings.redact)
        return {
            source: Question(
                source=source,
                settings=self.settings,
                instructions=instructions,
                text=prediction_text(source, self.card.attributes),
                schema=self._prediction_schema,
                check=self._check_predictions,
                image=image,
            )
            for source, image in prompt_images(row).items()
        }

    def choice(self, predictions: Predictions) -> Question | None:
        """Step two, or None where it is not asked: by the settings, or since no attribute has two values."""
        offers = offered(predictions)
        if self.settings.filling == "rules" or all(len(values) < 2 for values in offers.values()):
            return None
        names = [name for name in self.card.attributes if name in offers]
        return Question(
            source="choice",
            settings=self.settings,
            instructions=choice_instructions(self.card.kind),
            text=choice_text(self.card.kind, names, predictions),
            schema=self._choice_schema,
            check=lambda value: _check_choice(value, offers),
        )

    @cached_property
    def _prediction_schema(self) -> dict[str, Any]:
        confidence = {"type": "number", "minimum": 0, "maximum": 1}
        values = self._choice_schema["properties"]
        return _object(
            {name: _object({"value": value, "confidence": confidence}) for name, value in values.items()}
        )

    @cached_property
    def _choice_schema(self) -> dict[str, Any]:
        # The same for all samples: endpoints take long to compile a schema that they have not met.
        return _object(
            {
                name: {"type": "string", "enum": [*values, UNKNOWN]}
                for name, values in self.card.attributes.items()
            }
        )

    def _check_predictions(self, answer: Mapping[str, Any]) -> tuple[Values, list[str]]:
        usable: Values = {}
        wrong = [
            f"attribute {name!r} was not asked for" for name in answer if name not in self.card.attributes
        ]
        for name, values in self.card.attributes.items():
            found = answer.get(name)
            if not isinstance(found, dict) or found.keys() != {"value", "confidence"}:
                wrong.append(f"{name} is not an object of value and confidence")
                continue
            value, confidence = _matching(found["value"], (*values, UNKNOWN)), found["confidence"]
            if value is None:
                wrong.append(f"{name}: {found['value']!r} is not among its values")
            elif isinstance(confidence, bool) or not isinstance(confidence, int | float):
                wrong.append(f"{name}: confidence {confidence!r} is not a number")
            elif not 0 <= confidence <= 1:
                wrong.append(f"{name}: confidence {confidence!r} is not from 0 to 1")
            else:
                usable[name] = {"value": value, "confidence": confidence}
        return usable, wrong


def offered(predictions: Predictions) -> dict[str, tuple[str, ...]]:
    """Attribute to the distinct known values of all sources, in the order of SOURCES."""
    offers: dict[str, dict[str, None]] = {}
    for source in SOURCES:
        for name, found in predictions.get(source, {}).items():
            if found.is_known:
                offers.setdefault(name, {})[found.value.strip()] = None
    return {name: tuple(values) for name, values in offers.items()}


def as_predictions(values: Values) -> dict[str, AttributePrediction]:
    """The predictions in an answer to a question of step one."""
    return {name: AttributePrediction.model_validate(found) for name, found in values.items()}


def _check_choice(
    answer: Mapping[str, Any], offers: Mapping[str, tuple[str, ...]]
) -> tuple[Values, list[str]]:
    chosen = {name: _matching(answer.get(name), values) for name, values in offers.items()}
    usable = {name: value for name, value in chosen.items() if value is not None}
    wrong = [
        f"{name}: {answer.get(name)!r} was offered by no reader" for name in offers if name not in usable
    ]
    return usable, wrong


def _matching(value: Any, values: tuple[str, ...]) -> str | None:
    """The value that was meant, whatever its case."""
    if not isinstance(value, str):
        return None
    return next((known for known in values if known.lower() == value.strip().lower()), None)


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
