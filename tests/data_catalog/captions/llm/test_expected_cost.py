"""What a job can come to, held against the requests that a job sends."""

import pytest

from data_catalog.captions.llm.budget import most_usage, prompt_size
from data_catalog.captions.llm.expected_cost import expect_answers
from data_catalog.captions.llm.llm_settings import LlmCaptionSettings, Prices
from data_catalog.captions.llm.prompts import ROW_COLUMNS
from data_catalog.cards import load_card
from data_catalog.tables.table import Table
from tests.data_catalog.captions.llm.captioning import QUESTIONS, SAMPLES, Asked

SETTINGS = LlmCaptionSettings(model="tiny")
CARD = load_card(SETTINGS.card)


def expected(samples: Table, prices: Prices | None = None):
    row = samples.read_shard(0, ROW_COLUMNS).to_pylist()[0]
    return expect_answers(row, SAMPLES, CARD, SETTINGS, prices)


def test_it_is_the_most_that_the_requests_of_a_job_can_take(
    samples: Table, plain: tuple[Table, list[Asked]]
) -> None:
    most = [
        most_usage(prompt_size(request), SETTINGS.max_answer_tokens)
        for source, request, _ in plain[1]
        if source != "choice"
    ]
    choices = [most_usage(prompt_size(one), 0).prompt_tokens for what, one, _ in plain[1] if what == "choice"]
    found = expected(samples)
    assert found.questions == QUESTIONS == len(plain[1])
    assert found.completion_tokens == QUESTIONS * SETTINGS.max_answer_tokens
    # Prompts of step one are known; of step two the longest, in which all sources differ.
    step_one = sum(usage.prompt_tokens for usage in most)
    assert max(choices) * SAMPLES <= found.prompt_tokens - step_one <= 2 * max(choices) * SAMPLES


def test_its_cost_is_that_of_the_tokens(samples: Table) -> None:
    found = expected(samples, Prices(prompt=2.0, completion=8.0))
    dollars = (2 * found.prompt_tokens + 8 * found.completion_tokens) / 1e6
    assert found.cost_usd == pytest.approx(dollars)
    assert expected(samples).cost_usd is None
