"""The most that the captions of a language model can cost, before the first question is asked."""

from collections.abc import Mapping
from typing import Any

from data_catalog.captions.llm.budget import NO_USAGE, most_usage, prompt_size
from data_catalog.captions.llm.llm_settings import LlmCaptionSettings, Prices
from data_catalog.captions.llm.questions import Questions
from data_catalog.captions.predicted_attributes import SOURCES, AttributePrediction
from data_catalog.cards import Card
from data_catalog.records import Record


class ExpectedAnswers(Record):
    """What a job that asks a language model can come to, without questions that are asked again."""

    questions: int
    prompt_tokens: int
    """Sent, at most: a token of text has at least a byte, and images take what the most expensive published
    rule says. So it is several times what most endpoints count."""
    completion_tokens: int
    """Answered, at most: every answer at its full length."""
    cost_usd: float | None
    """Cost in USD of these tokens; None without prices."""


def expect_answers(
    row: Mapping[str, Any], samples: int, card: Card, settings: LlmCaptionSettings, prices: Prices | None
) -> ExpectedAnswers:
    """The most that a job can come to, by the rule with which it keeps its budget.

    Args:
        row: One of the samples, with `prompts.ROW_COLUMNS`; the others have images of its size.
        samples: How many there are.
        card: Card of the data set.
        settings: What is asked.
        prices: Prices of the endpoint; None where they are not known.
    """
    questions = Questions(card, settings)
    # Step two is asked where sources differ, and longest where all but one say the longest value.
    longest = {name: sorted(values, key=len)[-2:] for name, values in card.attributes.items()}
    predictions = {
        source: {
            name: AttributePrediction(value=values[0 if source == SOURCES[0] else -1], confidence=0.5)
            for name, values in longest.items()
        }
        for source in SOURCES
    }
    choice = questions.choice(predictions)
    asked = [*questions.about(row).values(), *([] if choice is None else [choice])]
    sizes = [prompt_size(question.request()) for question in asked]
    each = sum((most_usage(size, settings.max_answer_tokens) for size in sizes), NO_USAGE)
    return ExpectedAnswers(
        questions=len(asked) * samples,
        prompt_tokens=each.prompt_tokens * samples,
        completion_tokens=each.completion_tokens * samples,
        cost_usd=None if prices is None else each.cost_usd(prices) * samples,
    )
