import asyncio
import base64
import email.utils
import io
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from data_catalog.errors import CatalogError
from data_catalog.llm.client import ClientSettings, LlmClient, check_endpoint
from data_catalog.llm.prompt_sizes import PromptSize, image_tokens, prompt_size
from data_catalog.llm.responses import Completion, EndpointError, RequestFailedError, retry_after_seconds
from data_catalog.llm.spending import BudgetError, Prices, Spending, Usage
from tests.data_catalog.llm.chat_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    ChatServer,
    Reply,
    chat_server,
    error,
)

KEY = "sk-secret-0123456789"
PRICES = Prices(prompt=10, completion=30)
COST = (PROMPT_TOKENS * 10 + COMPLETION_TOKENS * 30) / 1e6


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def request(number: int) -> dict[str, Any]:
    properties = {f"a{number}": {"properties": {"value": {"enum": ["x"]}}}}
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": properties}}},
    }


def ask(
    server: ChatServer | str, count: int = 1, spending: Spending | None = None, **settings: Any
) -> tuple[list[Completion | BaseException], LlmClient]:
    """What requests come to that are all put at once, and the client that sent them."""
    url = server if isinstance(server, str) else server.url
    before = settings.pop("was_answered_before", False)
    merged = {"first_wait_seconds": 0.01, "timeout_seconds": 10, **settings}

    async def run() -> tuple[list[Completion | BaseException], LlmClient]:
        of_client = ClientSettings(endpoint=url, **merged)
        counted = spending or Spending(of_client.prices, of_client.budget_usd, 200)
        client = LlmClient(of_client, counted, was_answered_before=before)
        try:
            return (
                await asyncio.gather(
                    *(client.complete(request(number)) for number in range(count)), return_exceptions=True
                ),
                client,
            )
        finally:
            await client.close()

    return asyncio.run(run())


def failing(reply: Reply, *numbers: int) -> Any:
    """Behaviour that gives a reply to the requests with these numbers."""
    return lambda number, request: reply if number in numbers else None


def test_answer_and_tokens_come_back() -> None:
    with chat_server() as server:
        [completion], client = ask(server)
    assert isinstance(completion, Completion)
    assert json.loads(completion.text or "") == {
        "a0": {"value": "x", "confidence": pytest.approx(0.5, abs=0.5)}
    }
    assert completion.usage == client.spending.now == Usage(PROMPT_TOKENS, COMPLETION_TOKENS)
    assert completion.model == "tiny-2024-08-06"
    assert server.keys == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "reply",
    [
        error(500, "broken"),
        error(503, "overloaded", retry_after="0.02"),
        Reply("answer", is_cut_off=True),
        Reply(body=b"<html>gateway</html>"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b"null"),
        Reply(body={"choices": [{"message": {"content": 7}}]}),
    ],
    ids=["500", "503", "cut off", "not JSON", "no choice", "null", "content is a number"],
)
def test_passing_fault_is_asked_again(reply: Reply) -> None:
    with chat_server(failing(reply, 0, 1)) as server:
        [completion], client = ask(server)
    assert isinstance(completion, Completion)
    assert len(server.requests) == 3
    assert client.counts.retries == 2
    assert client.spending.now == Usage(PROMPT_TOKENS, COMPLETION_TOKENS)


@pytest.mark.parametrize(
    "reply", [Reply(is_hung=True), Reply("answer", trickle_seconds=0.1)], ids=["hung", "slow"]
)
def test_request_that_takes_too_long_is_given_up_and_sent_again(reply: Reply) -> None:
    with chat_server(failing(reply, 1)) as server:
        started = time.monotonic()
        completions, _ = ask(server, 2, timeout_seconds=0.4, concurrency=1)
    assert all(isinstance(completion, Completion) for completion in completions)
    assert len(server.requests) == 3
    assert 0.4 <= time.monotonic() - started < 3


def test_slow_answer_within_the_limit_is_waited_for() -> None:
    with chat_server(failing(Reply("late", delay_seconds=0.3), 0)) as server:
        [completion], client = ask(server, timeout_seconds=5)
    assert isinstance(completion, Completion)
    assert completion.text == "late"
    assert client.counts.retries == 0


def test_request_that_keeps_failing_ends_without_ending_the_others() -> None:
    def behaviour(number: int, body: Mapping[str, Any]) -> Reply | None:
        return error(500, "poison") if "question 1" in str(body) else None

    with chat_server(behaviour) as server:
        found, _ = ask(server, 3, retries=3)
    assert [type(result) for result in found] == [Completion, RequestFailedError, Completion]
    assert "the endpoint failed (500: poison); sent 4 times" in str(found[1])
    assert sum("question 1" in str(body) for body in server.requests) == 4


def test_waits_between_retries_double() -> None:
    with chat_server(failing(error(500, "broken"), 0, 1, 2)) as server:
        ask(server, first_wait_seconds=0.1)
    waits = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    for wait, longest in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert longest / 2 <= wait < longest + 0.5


def test_everybody_waits_as_long_as_retry_after_says() -> None:
    # The second request is limited; the third to eighth must not be sent meanwhile.
    with chat_server(failing(error(429, "slow down", retry_after="0.5"), 1)) as server:
        found, client = ask(server, 8, concurrency=1)
    assert all(isinstance(completion, Completion) for completion in found)
    assert server.times[2] - server.times[1] >= 0.5
    assert client.counts.rate_limited == 1
    assert client.counts.retries == 0


def test_rate_limits_do_not_use_up_retries() -> None:
    with chat_server(failing(error(429, "slow down", retry_after="0.01"), *range(1, 20))) as server:
        found, client = ask(server, 2, retries=0)
    assert all(isinstance(completion, Completion) for completion in found)
    assert client.counts.rate_limited == 19


def test_patience_ends_where_nothing_is_answered() -> None:
    with chat_server(lambda number, body: error(429, "slow down", retry_after="0.05")) as server:
        [found], _ = ask(server, patience_seconds=0.3)
    assert isinstance(found, EndpointError)
    assert "has answered nothing for 0.3 s" in str(found)


def test_wait_that_is_too_long_ends_the_job() -> None:
    with chat_server(lambda number, body: error(429, "tomorrow", retry_after="86400")) as server:
        [found], _ = ask(server)
    assert isinstance(found, EndpointError)
    assert "asks to wait 86400 s, more than patience_seconds (600)" in str(found)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            error(401, f"wrong key {KEY}"),
            r"does not accept the key \(401: wrong key \*\*\*\); set OPENAI_API_KEY",
        ),
        (error(403, "not yours"), r"does not accept the key \(403"),
        (
            error(404, "no model tiny"),
            r"does not know the model or the path \(404: no model tiny\); check --model",
        ),
        (error(429, "pay", "insufficient_quota"), r"the account has no money left \(pay\)"),
        (error(400, "no images"), r"refuses the request \(400: no images\); the model must take images"),
        (error(422, "no schema"), r"refuses the request \(422"),
    ],
    ids=["401", "403", "404", "quota", "400", "422"],
)
def test_endpoint_that_cannot_be_used_costs_one_request(reply: Reply, message: str) -> None:
    with chat_server(lambda number, body: reply) as server:
        found, _ = ask(server, 20, concurrency=8)
    assert len(server.requests) == 1
    with pytest.raises(EndpointError, match=message):
        raise next(result for result in found if isinstance(result, BaseException))
    assert all(isinstance(result, EndpointError) for result in found)
    assert KEY not in "".join(map(str, found))


def test_endpoint_that_does_not_answer_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    found, _ = ask(f"http://127.0.0.1:{port}/v1", 5, first_wait_seconds=5)
    assert time.monotonic() - started < 3
    assert {str(error).partition(" (")[0] for error in found} == {
        f"endpoint http://127.0.0.1:{port}/v1: connection refused"
    }
    with chat_server(lambda number, body: Reply(is_hung=True)) as server:
        found, _ = ask(server, 5, timeout_seconds=0.3)
    assert len(server.requests) == 1
    assert "no answer within 0.3 s; check that it runs" in str(found[0])


def test_question_left_over_by_an_earlier_job_does_not_condemn_the_endpoint() -> None:
    with chat_server(failing(error(500, "poison"), 0, 1)) as server:
        found, _ = ask(server, 2, retries=1, concurrency=1, was_answered_before=True)
    assert [type(result) for result in found] == [RequestFailedError, Completion]
    with chat_server(failing(error(400, "poison"), 0)) as server:
        found, _ = ask(server, 2, concurrency=1, was_answered_before=True)
    assert [type(result) for result in found] == [RequestFailedError, Completion]


def test_wrong_key_in_the_middle_ends_the_job_and_keeps_what_is_in_flight() -> None:
    def behaviour(number: int, body: Mapping[str, Any]) -> Reply | None:
        return error(401, "expired") if number == 3 else Reply("late", delay_seconds=0.3 if number else 0)

    with chat_server(behaviour) as server:
        found, _ = ask(server, 20, concurrency=4)
    # The first alone, then four at once, of which one ends it all.
    assert len(server.requests) == 5
    assert sum(isinstance(result, Completion) for result in found) == 4


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "unsafe", "content_policy_violation"),
        Reply(refusal="I cannot help with people."),
        Reply(finish_reason="content_filter"),
    ],
    ids=["status", "refusal", "withheld"],
)
def test_refusal_is_an_answer(reply: Reply) -> None:
    with chat_server(lambda number, body: reply) as server:
        [completion], _ = ask(server)
    assert isinstance(completion, Completion)
    assert completion.text is None
    assert completion.refusal
    assert len(server.requests) == 1


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(concurrency: int) -> None:
    with chat_server(lambda number, body: Reply("slow", delay_seconds=0.05)) as server:
        found, _ = ask(server, 12, concurrency=concurrency)
    assert all(isinstance(completion, Completion) for completion in found)
    assert server.most_at_once == concurrency


@pytest.mark.parametrize("concurrency", [1, 7])
def test_budget_is_never_exceeded_and_well_used(concurrency: int) -> None:
    budget = 25.3 * COST
    with chat_server(lambda number, body: Reply("slow", delay_seconds=0.01)) as server:
        found, client = ask(server, 60, concurrency=concurrency, prices=PRICES, budget_usd=budget)
    answered = sum(isinstance(result, Completion) for result in found)
    assert server.answered.total() == answered == len(server.requests)
    assert client.spending.cost_usd == pytest.approx(answered * COST)
    # An answer may be twice as long as these, so the last one is not risked.
    assert answered in (24, 25)
    assert all(isinstance(result, Completion | BudgetError) for result in found)
    [message] = {str(result) for result in found if isinstance(result, BudgetError)}
    assert "budget_usd: 0.33 US dollars do not cover another request" in message


@pytest.mark.parametrize("length", [3, 5000])
def test_budget_below_the_price_of_one_prompt_spends_nothing(length: int) -> None:
    budget = PRICES.cost_usd(Usage(length, 200))
    body = {**request(0), "messages": [{"role": "user", "content": "ж" * (length // 2)}]}

    async def run(client: LlmClient) -> None:
        try:
            await client.complete(body)
        finally:
            await client.close()

    with chat_server() as server:
        settings = ClientSettings(endpoint=server.url, prices=PRICES, budget_usd=budget)
        client = LlmClient(settings, Spending(PRICES, budget, 200))
        with pytest.raises(BudgetError, match=r"spent: 0\.0000; the next may cost 0\.0"):
            asyncio.run(run(client))
        assert server.requests == []


def test_longer_prompt_than_any_before_is_set_aside_in_full() -> None:
    spending = Spending(PRICES, PRICES.cost_usd(Usage(3000, 300)), 200)
    spending.count_earlier(Usage(1000, 100), 1)
    with pytest.raises(BudgetError, match="do not cover another request"):
        asyncio.run(spending.set_aside(PromptSize(2001)))
    assert asyncio.run(spending.set_aside(PromptSize(2000))) == Usage(2000, 200)


def test_image_is_set_aside_by_the_dearest_rule_until_one_of_its_size_was_answered() -> None:
    spending = Spending(PRICES, None, 200)
    small, large = (PromptSize(500, (size,)) for size in ((32, 64), (64, 64)))
    most = asyncio.run(spending.set_aside(small))
    assert most == Usage(500 + image_tokens((32, 64)), 200)
    spending.settle(small, most, Usage(900, 350))
    # The next answer may be as long as this one, which the endpoint did not cut.
    assert asyncio.run(spending.set_aside(small)) == Usage(500 + 900, 350)
    assert asyncio.run(spending.set_aside(large)) == Usage(500 + image_tokens((64, 64)), 350)


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
def test_image_takes_no_more_than_the_dearest_published_rule(size: tuple[int, int], published: float) -> None:
    assert published <= image_tokens(size) <= 1.01 * published
    assert image_tokens(size) == image_tokens(size[::-1])


def test_earlier_answers_count_towards_the_budget() -> None:
    spending = Spending(PRICES, 25.3 * COST, 200)
    for _ in range(20):
        spending.count_earlier(Usage(2 * PROMPT_TOKENS, 2 * COMPLETION_TOKENS), requests=2)
    with chat_server() as server:
        found, _ = ask(server, 10, spending=spending, prices=PRICES, budget_usd=25.3 * COST)
    assert server.requests == []
    assert all(isinstance(result, BudgetError) for result in found)


def test_answer_that_was_lost_may_have_been_charged() -> None:
    with chat_server(failing(Reply("lost", is_cut_off=True), 1, 2)) as server:
        found, client = ask(server, 2, concurrency=1, prices=PRICES, budget_usd=1.0)
    assert all(isinstance(completion, Completion) for completion in found)
    assert client.spending.lost == Usage(2 * PROMPT_TOKENS, 2 * 200)
    dearest = PRICES.cost_usd(Usage(PROMPT_TOKENS, 200))
    assert client.spending.cost_usd == pytest.approx(2 * COST + 2 * dearest)
    assert len(server.requests) == 4


def test_budget_needs_prices_and_tokens() -> None:
    with pytest.raises(CatalogError, match="a budget needs the prices"):
        check_endpoint(ClientSettings(endpoint="http://127.0.0.1/v1", budget_usd=1))
    with chat_server(lambda number, body: Reply("free", has_usage=False)) as server:
        found, _ = ask(server, 3, prices=PRICES, budget_usd=1.0)
        assert len(server.requests) == 1
        assert "does not tell how many tokens" in str(found[0])
        [completion], _ = ask(server)
    assert isinstance(completion, Completion)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("127.0.0.1:8000/v1", "is no URL; expected one such as http"),
        ("ftp://127.0.0.1/v1", "is no URL"),
        ("ftp://me:hidden@127.0.0.1/v1?key=hidden", r"endpoint 'ftp://\.\.\.@127\.0\.0\.1/v1' is no URL"),
        ("me:hidden@host/v1", r"endpoint '\.\.\.@host/v1' is no URL"),
        ("http://[::1", r"endpoint 'http://\[::1' is no URL; expected one such as http"),
        ("http://host:abc/v1", "endpoint 'http://host:abc/v1' is no URL"),
        ("http://host:99999/v1", "endpoint 'http://host:99999/v1' is no URL"),
        ("http://me:hid/den@host/v1", "endpoint 'http://...@host/v1' is no URL"),
        ("https://me:hidden@host/v1", "endpoint at host: the URL holds a password"),
        ("https://host/v1?key=hidden", "endpoint at host: the URL holds a password or a query"),
    ],
)
def test_endpoint_must_be_a_plain_url(endpoint: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message) as raised:
        check_endpoint(ClientSettings(endpoint=endpoint))
    assert "hid" not in str(raised.value)


def test_key_that_no_header_can_carry_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden\nsecond")
    with pytest.raises(CatalogError, match="holds characters that no key has") as raised:
        ask("http://127.0.0.1:9/v1")
    assert "hidden" not in str(raised.value)


def test_endpoint_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with chat_server() as server:
        [completion], _ = ask(server)
    assert isinstance(completion, Completion)
    with chat_server(lambda number, body: error(401, "no key")) as server:
        [found], _ = ask(server)
    assert "set OPENAI_API_KEY to a key for it (it is not set)" in str(found)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
    ],
)
def test_retry_after_is_seconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert retry_after_seconds({"retry-after": date}) == pytest.approx(30, abs=1.5)
