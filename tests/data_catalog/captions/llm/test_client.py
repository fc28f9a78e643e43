import email.utils
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

import pytest

from data_catalog.captions.llm.budget import Usage
from data_catalog.captions.llm.llm_settings import ClientSettings, check_endpoint
from data_catalog.captions.llm.responses import (
    Completion,
    EndpointError,
    RequestFailedError,
    retry_after_seconds,
)
from data_catalog.errors import CatalogError
from tests.data_catalog.captions.llm.chat_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Reply,
    chat_server,
    error,
)
from tests.data_catalog.captions.llm.sending import KEY, ask, failing


def test_answer_and_tokens_come_back() -> None:
    with chat_server() as server:
        [completion], client = ask(server)
    assert isinstance(completion, Completion)
    assert json.loads(completion.text or "") == {
        "a0": {"value": "x", "confidence": pytest.approx(0.5, abs=0.5)}
    }
    assert completion.usage == client.budget.now == Usage(PROMPT_TOKENS, COMPLETION_TOKENS)
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
    assert client.counts["retries"] == 2
    assert client.budget.now == Usage(PROMPT_TOKENS, COMPLETION_TOKENS)


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
    assert client.counts["retries"] == 0


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


def test_all_requests_wait_as_long_as_retry_after_says() -> None:
    # The second request is limited; the third to eighth must not be sent meanwhile.
    with chat_server(failing(error(429, "slow down", retry_after="0.5"), 1)) as server:
        found, client = ask(server, 8, concurrency=1)
    assert all(isinstance(completion, Completion) for completion in found)
    assert server.times[2] - server.times[1] >= 0.5
    assert client.counts["rate_limited"] == 1
    assert client.counts["retries"] == 0


def test_rate_limits_do_not_use_up_retries() -> None:
    with chat_server(failing(error(429, "slow down", retry_after="0.01"), *range(1, 20))) as server:
        found, client = ask(server, 2, retries=0)
    assert all(isinstance(completion, Completion) for completion in found)
    assert client.counts["rate_limited"] == 19


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
        (
            error(400, "no images"),
            r"refuses the request \(400: no images\); check .* takes images and a JSON",
        ),
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


def test_endpoint_that_hangs_is_asked_again_one_request_at_a_time() -> None:
    with chat_server(lambda number, body: Reply(is_hung=True)) as server:
        found, _ = ask(server, 5, timeout_seconds=0.3, retries=2)
    assert len(server.requests) == 3
    assert {str(error).partition(": ")[2] for error in found} == {
        "no answer within 0.3 s; sent 3 times; check that it runs, that the URL is right (as a rule it ends "
        "in /v1), and that the model takes images and a JSON schema as response format"
    }
    with chat_server(failing(Reply(is_hung=True), 0)) as server:
        found, _ = ask(server, 5, timeout_seconds=0.3)
    assert all(isinstance(completion, Completion) for completion in found)


def test_question_that_an_earlier_job_left_does_not_end_the_next_job() -> None:
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


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("127.0.0.1:8000/v1", "is not a URL; expected one such as http"),
        ("ftp://127.0.0.1/v1", "is not a URL"),
        ("ftp://me:hidden@127.0.0.1/v1?key=hidden", r"endpoint 'ftp://\.\.\.@127\.0\.0\.1/v1' is not a URL"),
        ("me:hidden@host/v1", r"endpoint '\.\.\.@host/v1' is not a URL"),
        ("http://[::1", r"endpoint 'http://\[::1' is not a URL; expected one such as http"),
        ("http://host:abc/v1", "endpoint 'http://host:abc/v1' is not a URL"),
        ("http://host:99999/v1", "endpoint 'http://host:99999/v1' is not a URL"),
        ("http://me:hid/den@host/v1", "endpoint 'http://...@host/v1' is not a URL"),
        ("https://me:hidden@host/v1", "endpoint at host: the URL holds a password"),
        ("https://host/v1?key=hidden", "endpoint at host: the URL holds a password or a query"),
    ],
)
def test_endpoint_must_be_a_plain_url(endpoint: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message) as raised:
        check_endpoint(ClientSettings(endpoint=endpoint))
    assert "hid" not in str(raised.value)


def test_key_that_no_header_can_carry_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
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
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ],
)
def test_retry_after_is_seconds(headers: dict[str, str], seconds: float) -> None:
    assert retry_after_seconds(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert retry_after_seconds({"retry-after": date}) == pytest.approx(30, abs=1.5)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_an_endpoint_of_this_machine_is_asked_without_a_proxy(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    with chat_server() as server:
        [completion], _ = ask(server)
    assert isinstance(completion, Completion)


def test_a_proxy_that_does_not_answer_is_named_with_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    [ended], _ = ask("http://llm.example/v1")
    assert isinstance(ended, EndpointError)
    assert "http://llm.example/v1 through the proxy http://127.0.0.1:9 (http_proxy" in str(ended)


def test_a_kind_of_proxy_that_cannot_be_asked_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(EndpointError, match=r"through the proxy socks5://127\.0\.0\.1:9 .*socksio") as ended:
        ask("http://llm.example/v1")
    assert "\n" not in str(ended.value)
