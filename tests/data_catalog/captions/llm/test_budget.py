import asyncio
import base64
import io
import json
import time

import pytest
from PIL import Image

from data_catalog.captions.llm.budget import (
    NO_USAGE,
    Budget,
    BudgetError,
    PromptSize,
    Usage,
    image_tokens,
    prompt_size,
)
from data_catalog.captions.llm.client import LlmClient
from data_catalog.captions.llm.llm_settings import ClientSettings, check_endpoint
from data_catalog.captions.llm.responses import Completion
from data_catalog.errors import CatalogError
from tests.data_catalog.captions.llm.chat_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Reply,
    chat_server,
    error,
)
from tests.data_catalog.captions.llm.sending import COST, PRICES, ask, failing, request


def reserve(budget: Budget, prompt: PromptSize, usage: Usage | None = None, is_lost: bool = False) -> Usage:
    """What a request reserves that comes to this usage, or is lost."""

    async def run() -> Usage:
        async with budget.reserve(prompt) as reservation:
            reservation.usage, reservation.is_lost = usage, is_lost
        return reservation.most

    return asyncio.run(run())


@pytest.mark.parametrize("concurrency", [1, 7])
def test_budget_is_never_exceeded_and_well_used(concurrency: int) -> None:
    budget = 25.3 * COST
    with chat_server(lambda number, body: Reply("slow", delay_seconds=0.01)) as server:
        found, client = ask(server, 60, concurrency=concurrency, prices=PRICES, budget_usd=budget)
    answered = sum(isinstance(result, Completion) for result in found)
    assert server.answered.total() == answered == len(server.requests)
    assert client.budget.cost_usd == pytest.approx(answered * COST)
    # An answer may be twice as long as these, so the last one is not risked.
    assert answered in (24, 25)
    assert all(isinstance(result, Completion | BudgetError) for result in found)
    [message] = {str(result) for result in found if isinstance(result, BudgetError)}
    assert "budget_usd: 0.33 US dollars do not cover another request" in message


@pytest.mark.parametrize("length", [3, 5000])
def test_budget_below_the_price_of_one_prompt_spends_nothing(length: int) -> None:
    budget = Usage(length, 200).cost_usd(PRICES)
    body = {**request(0), "messages": [{"role": "user", "content": "ж" * (length // 2)}]}

    async def run(client: LlmClient) -> None:
        try:
            await client.complete(body)
        finally:
            await client.close()

    with chat_server() as server:
        settings = ClientSettings(endpoint=server.url, prices=PRICES, budget_usd=budget)
        client = LlmClient(settings, Budget(PRICES, budget, 200))
        with pytest.raises(BudgetError, match=r"spent: 0\.0000; the next may cost 0\.0"):
            asyncio.run(run(client))
        assert server.requests == []


def test_cost_of_answers_that_are_not_kept_is_noted_once_for_the_next_job() -> None:
    noted: list[Usage] = []
    budget = Budget(PRICES, 1.0, 200, note_lost=noted.append)
    prompt = PromptSize(10)
    reserve(budget, prompt, usage=Usage(100, 20))
    budget.abandon(Usage(100, 20))
    budget.abandon(NO_USAGE)
    assert noted == [Usage(100, 20)]
    assert budget.cost_usd == Usage(100, 20).cost_usd(PRICES)
    most = reserve(budget, prompt, is_lost=True)
    assert noted[1:] == [Usage(100, 20) + most]


def test_request_that_waited_for_the_budget_also_waits_for_retry_after() -> None:
    arrived: list[float] = []

    def behaviour(number: int, body: object) -> Reply | None:
        arrived.append(time.monotonic())
        return error(429, "slow down", retry_after="0.6") if number == 1 else None

    with chat_server(behaviour) as server:
        # One answer, and room for one request at a time beside it.
        budget = COST + 1.2 * Usage(PROMPT_TOKENS, 200).cost_usd(PRICES)
        _, client = ask(server, 3, concurrency=3, prices=PRICES, budget_usd=budget)
    assert client.counts["rate_limited"] == 1
    assert len(arrived) >= 3
    assert min(later - arrived[1] for later in arrived[2:]) >= 0.6


def test_prompt_longer_than_any_before_is_reserved_in_full() -> None:
    budget = Budget(PRICES, Usage(3000, 300).cost_usd(PRICES), 200)
    budget.count_earlier(Usage(1000, 100), 1)
    with pytest.raises(BudgetError, match="do not cover another request"):
        reserve(budget, PromptSize(2001))
    assert reserve(budget, PromptSize(2000)) == Usage(2000, 200)


def test_image_reserves_the_most_until_one_of_its_size_was_answered() -> None:
    budget = Budget(PRICES, None, 200)
    small, large = (PromptSize(500, (size,)) for size in ((32, 64), (64, 64)))
    most = reserve(budget, small, usage=Usage(900, 350))
    assert most == Usage(500 + image_tokens((32, 64)), 200)
    # The next answer may be as long as this one, which the endpoint did not cut.
    assert reserve(budget, small) == Usage(500 + 900, 350)
    assert reserve(budget, large) == Usage(500 + image_tokens((64, 64)), 350)


def test_image_of_a_size_that_an_earlier_job_paid_for_is_known() -> None:
    budget = Budget(PRICES, None, 200)
    size = (32, 64)
    # One of two requests without reported tokens, and an endpoint that reports none: nothing is learned.
    budget.count_earlier(Usage(900, 50), 2, [size])
    budget.count_earlier(Usage(0, 0), 1, [size])
    prompt = PromptSize(500, (size,))
    assert reserve(budget, prompt) == Usage(500 + image_tokens(size), 200)
    budget.count_earlier(Usage(900, 50), 1, [size])
    assert reserve(budget, prompt) == Usage(500 + 900, 200)


def test_prompt_is_no_longer_than_its_bytes_and_its_images() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (32, 64)).save(sink, format="JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    body = request(0)
    body["messages"] = [{"role": "user", "content": [image, {"type": "text", "text": "粤" * 100}]}]
    size = prompt_size(body)
    assert size.images == ((32, 64),)
    assert size.text_tokens >= 300 + len(json.dumps(body["response_format"]))
    again = {**body, "messages": [*body["messages"], {"role": "assistant", "content": "x" * 700}]}
    assert prompt_size(again).text_tokens >= size.text_tokens + 700


@pytest.mark.parametrize(
    ("size", "published"),
    [
        # Tiles of gpt-4o-mini: 2 x 3, 2 x 2, 2 x 4.
        ((128, 256), 2833 + 6 * 5667),
        ((256, 256), 2833 + 4 * 5667),
        ((100, 2000), 2833 + 8 * 5667),
        # Patches of a model that takes images as they are.
        ((8000, 8000), (8000 / 14) ** 2),
    ],
)
def test_image_takes_no_more_than_the_most_expensive_published_rule(
    size: tuple[int, int], published: float
) -> None:
    assert published <= image_tokens(size) <= 1.01 * published
    assert image_tokens(size) == image_tokens(size[::-1])


def test_earlier_answers_count_towards_the_budget() -> None:
    budget = Budget(PRICES, 25.3 * COST, 200)
    for _ in range(20):
        budget.count_earlier(Usage(2 * PROMPT_TOKENS, 2 * COMPLETION_TOKENS), requests=2)
    with chat_server() as server:
        found, _ = ask(server, 10, budget=budget, prices=PRICES, budget_usd=25.3 * COST)
    assert server.requests == []
    assert all(isinstance(result, BudgetError) for result in found)


def test_answer_that_was_lost_may_have_been_charged() -> None:
    with chat_server(failing(Reply("lost", is_cut_off=True), 1, 2)) as server:
        found, client = ask(server, 2, concurrency=1, prices=PRICES, budget_usd=1.0)
    assert all(isinstance(completion, Completion) for completion in found)
    assert client.budget.lost == Usage(2 * PROMPT_TOKENS, 2 * 200)
    most = Usage(PROMPT_TOKENS, 200).cost_usd(PRICES)
    assert client.budget.cost_usd == pytest.approx(2 * COST + 2 * most)
    assert len(server.requests) == 4


def test_budget_needs_prices_and_tokens() -> None:
    with pytest.raises(CatalogError, match="a budget needs the prices"):
        check_endpoint(ClientSettings(endpoint="http://127.0.0.1/v1", budget_usd=1))
    with chat_server(lambda number, body: Reply("free", has_usage=False)) as server:
        found, _ = ask(server, 3, prices=PRICES, budget_usd=1.0)
        assert len(server.requests) == 1
        assert "does not report how many tokens" in str(found[0])
        [completion], _ = ask(server)
    assert isinstance(completion, Completion)
