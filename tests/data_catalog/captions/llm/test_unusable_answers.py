"""Endpoints that answer every question, or many, in a way that cannot be used."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from data_catalog.__main__ import main
from data_catalog.captions.llm.answers import Answer, AnswerStore
from data_catalog.captions.llm.budget import NO_USAGE
from data_catalog.errors import CatalogError
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, list_tables
from tests.data_catalog.captions.llm.captioning import QUESTIONS, caption, command
from tests.data_catalog.captions.llm.chat_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Behaviour,
    ChatServer,
    Reply,
    answer_schema,
    chat_server,
    fitting_answer,
    is_choice,
    request_digest,
)
from tests.data_catalog.captions.llm.sending import PRICES


def thinking(number: int, request: Mapping[str, Any]) -> Reply:
    """Like a model that thinks aloud, behind a server that does not know its format."""
    plain = {**request, "messages": request["messages"][:2]}
    return Reply(f"<think>Maybe {{}}?</think>\n\nHere:\n```json\n{fitting_answer(plain)}\n```\nDone.")


def unknown(number: int, request: Mapping[str, Any]) -> Reply:
    """Like a model that is not given the images."""
    return Reply(json.dumps({name: {"value": "unknown", "confidence": 0} for name in answer_schema(request)}))


def test_thinking_model_makes_the_table_of_one_that_does_not(samples: Table, undisturbed: Table) -> None:
    with chat_server(thinking) as server:
        assert caption(samples, server).digest == undisturbed.digest
        assert len(server.requests) == QUESTIONS


@pytest.mark.parametrize(
    ("behaviour", "kind", "most_requests"),
    [
        (lambda number, request: Reply("<think>It is a"), "malformed", 9),
        (lambda number, request: Reply(""), "empty", 9),
        (lambda number, request: Reply(refusal="I cannot see images."), "refused", 9),
        (lambda number, request: Reply("<think>", finish_reason="length"), "cut", 9),
        (unknown, "all of the first 21 answers say 'unknown'", 29),
    ],
    ids=["malformed", "empty", "refused", "cut", "unknown"],
)
def test_endpoint_without_a_usable_answer_stops_early_and_can_be_corrected(
    samples: Table, undisturbed: Table, behaviour: Behaviour, kind: str, most_requests: int
) -> None:
    with chat_server(behaviour) as server:
        with pytest.raises(CatalogError, match=f"{kind}.* not kept.*run the same command again"):
            caption(samples, server)
        # Three answers that are no use, each asked for three times; or 21, and what was in flight.
        assert len(server.requests) <= most_requests
        assert not list_tables(samples.catalog, "small", TableKind.CAPTIONS)
        assert not AnswerStore.of_dataset(samples.catalog, "small").digests()
        server.behaviour = lambda number, request: None
        server.requests.clear()
        assert caption(samples, server).digest == undisturbed.digest
        assert len(server.requests) == QUESTIONS


def spoiling(server: ChatServer, count: int) -> Behaviour:
    """Answers some questions of step one in prose, however often they are asked."""
    spoiled: set[str] = set()

    def behaviour(number: int, request: Mapping[str, Any]) -> Reply | None:
        digest = request_digest({**request, "messages": request["messages"][:2]})
        if not is_choice(request) and len(spoiled) < count and number % 9 == 8:
            spoiled.add(digest)
        return Reply("A man in red.") if digest in spoiled else None

    return behaviour


def test_few_unusable_answers_are_left_unknown_and_counted(samples: Table) -> None:
    with chat_server() as server:
        server.behaviour = spoiling(server, 2)
        table = caption(samples, server, concurrency=1, reasks=1)
        requests = len(server.requests)
    assert table.statistics["faults"] == {"malformed": 2}
    assert table.statistics["missing"] == 0
    assert requests == QUESTIONS + 2
    kept = AnswerStore.of_dataset(samples.catalog, "small")
    assert len(kept.digests()) == QUESTIONS - 2


def test_share_of_unusable_answers_is_a_setting_and_what_they_cost_is_known(samples: Table) -> None:
    settings = {"concurrency": 1, "reasks": 0, "prices": PRICES}
    with chat_server() as server:
        server.behaviour = spoiling(server, 2)
        with pytest.raises(CatalogError, match=r"1 of \d+ answers cannot be used \(malformed 1\)"):
            caption(samples, server, unusable_share=0.01, **settings)
        server.behaviour = lambda number, request: None
        table = caption(samples, server, unusable_share=0.01, **settings)
        paid = len(server.requests)
    llm = table.statistics["llm"]
    tokens = (PROMPT_TOKENS * PRICES.prompt + COMPLETION_TOKENS * PRICES.completion) / 1e6
    assert paid == QUESTIONS + 1
    assert llm["cost_usd"] == pytest.approx(paid * tokens)


def test_unusable_answers_that_an_earlier_version_kept_are_asked_for_again(
    samples: Table, undisturbed: Table
) -> None:
    store = AnswerStore.of_dataset(samples.catalog, "small")
    with chat_server() as server:
        caption(samples, server)
        for digest in sorted(store.digests())[::2]:
            usage = vars(NO_USAGE)
            store.write(digest, Answer(values={}, fault="malformed", requests=3, **usage))
        again = caption(samples, server, failed="unknown")
        assert len(server.requests) == QUESTIONS + (QUESTIONS + 1) // 2
    assert again.read().equals(undisturbed.read())


def test_command_says_in_one_line_and_in_its_status_that_nothing_was_understood(
    samples: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server(lambda number, request: Reply("It is a man.")) as server:
        assert main(command(samples, server.url, "--reasks", "0")) == 2
        requests = len(server.requests)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"endpoint {server.url}: 3 of 3 answers cannot be used (malformed 3)" in line
    assert requests == 3
