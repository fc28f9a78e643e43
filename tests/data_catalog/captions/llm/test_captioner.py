import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_catalog.__main__ import main
from data_catalog.captions.sentences import PERSON, write_caption
from data_catalog.cards import load_card
from data_catalog.errors import CatalogError
from data_catalog.tables.table import Table, list_datasets
from tests.data_catalog.captions.llm.captioning import QUESTIONS, SAMPLES, Asked, caption, command
from tests.data_catalog.captions.llm.chat_server import (
    PROMPT_TOKENS,
    Reply,
    chat_server,
    error,
    fitting_answer,
    is_choice,
    listed_offers,
    request_digest,
)
from tests.data_catalog.captions.llm.sending import KEY
from tests.data_catalog.folders import sample_ids

SOURCES = ("JOINT", "RGB", "NIR", "TIR")


def test_captions_follow_from_the_answers(undisturbed: Table, ingested: Path) -> None:
    rows = undisturbed.read().to_pylist()
    assert [row["sample_id"] for row in rows] == [id_ for id_ in sample_ids() if id_.endswith("_00")]
    attributes = load_card("synthetic_person").attributes
    for row in rows:
        chosen = {entry["name"]: entry["value"] for entry in row["attributes"]}
        assert row["caption"] == write_caption(chosen, PERSON)
        for name, value in chosen.items():
            assert value in attributes[name]
        for entry in row["attributes"]:
            assert entry["source"] in SOURCES
    llm = undisturbed.statistics["llm"]
    assert (llm["requests"], llm["retries"], llm["failed"]) == (QUESTIONS, 0, 0)
    assert llm["prompt_tokens"] == QUESTIONS * PROMPT_TOKENS
    assert undisturbed.statistics["models"] == {"tiny-2024-08-06": QUESTIONS}
    assert list_datasets(undisturbed.catalog) == ["small"]


def test_every_caption_is_what_plain_code_makes_of_the_answers(
    plain: tuple[Table, list[Asked]],
) -> None:
    table, asked = plain
    expected = []
    for first in range(0, len(asked), 5):
        group = asked[first : first + 5]
        assert sorted(source for source, _, _ in group) == sorted([*SOURCES, "choice"])
        read = {source: answer for source, _, answer in group}
        [(_, choice_request, choice)] = [entry for entry in group if entry[0] == "choice"]
        offers = listed_offers(choice_request)
        values = {}
        for name in load_card("synthetic_person").attributes:
            said = [read[source][name] for source in SOURCES if read[source][name]["value"] != "unknown"]
            distinct = {reading["value"] for reading in said}
            assert distinct == set(offers.get(name, []))
            if said:
                values[name] = choice[name] if len(distinct) > 1 else said[0]["value"]
        expected.append(write_caption(values, PERSON))
    assert table.read()["caption"].to_pylist() == expected
    assert table.statistics["choices"]["llm"] > 50


def test_value_that_nobody_offered_never_reaches_a_caption(samples: Table) -> None:
    def liar(number: int, request: Mapping[str, Any]) -> Reply | None:
        if not is_choice(request):
            return None
        answer = json.loads(fitting_answer(request))
        return Reply(json.dumps({**answer, "hat": "crown", "shoes": "unknown"}))

    with chat_server(liar) as server:
        table = caption(samples, server, reasks=1)
        assert len(server.requests) == QUESTIONS + SAMPLES
        ruled = caption(samples, server, filling="rules")
        assert len(server.requests) == QUESTIONS + SAMPLES
    assert table.statistics["faults"] == {"malformed": SAMPLES}
    for row, by_rule in zip(table.read().to_pylist(), ruled.read().to_pylist(), strict=True):
        assert "crown" not in row["caption"]
        chosen, best = (
            {entry["name"]: entry["value"] for entry in found["attributes"]} for found in (row, by_rule)
        )
        assert (chosen.get("hat"), chosen.get("shoes")) == (best.get("hat"), best.get("shoes"))
    assert set(ruled.statistics["choices"]) == {"rules", "one"}
    assert ruled.statistics["llm"]["answers_kept_from_before"] == SAMPLES * 4


def test_unanswered_questions_stop_the_table_or_stay_unknown(samples: Table, undisturbed: Table) -> None:
    poisoned: set[str] = set()

    def behaviour(number: int, request: Mapping[str, Any]) -> Reply | None:
        if number == 6:
            poisoned.add(request_digest(request))
        return error(500, "poison") if request_digest(request) in poisoned else None

    with chat_server(behaviour) as server:
        with pytest.raises(
            CatalogError, match=r"1 questions got no answer \(first: sample .*500: poison.*--failed"
        ):
            caption(samples, server, retries=1)
        # The sample's choice was not asked for, all the rest was.
        assert server.answered.total() == QUESTIONS - 2
        without = caption(samples, server, retries=1, failed="unknown")
        assert without.statistics["llm"]["failed"] == 1
        server.behaviour = lambda number, request: None
        whole = caption(samples, server)
    assert whole.read().equals(undisturbed.read())
    differing = [
        row["sample_id"]
        for row, other in zip(without.read().to_pylist(), whole.read().to_pylist(), strict=True)
        if row != other
    ]
    assert len(differing) <= 1
    assert without.manifest.key != whole.manifest.key


def test_key_is_in_no_file_log_or_message(
    samples: Table, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def echoing(number: int, request: Mapping[str, Any]) -> Reply | None:
        return error(500, f"Bearer {KEY} failed") if number in (1, 2) else None

    caplog.set_level(logging.DEBUG)
    with chat_server(echoing) as server:
        assert main([*command(samples, server.url, "--redact"), "--json"]) == 0
        assert server.keys == {f"Bearer {KEY}"}
        printed = json.loads(capsys.readouterr().out)
        assert printed["redactions"] == {}
        server.behaviour = lambda number, request: error(401, f"wrong: {KEY}")
        assert main([*command(samples, server.url), "--model", "other"]) == 2
    output = capsys.readouterr()
    assert "does not accept the key (401: wrong: ***)" in output.err
    assert KEY not in output.out + output.err + caplog.text + json.dumps(printed)
    files = [path for path in Path(samples.catalog).rglob("*") if path.is_file()]
    assert len(files) > QUESTIONS
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_command_names_what_is_missing(samples: Table, capsys: pytest.CaptureFixture[str]) -> None:
    start = command(samples, "http://127.0.0.1:9/v1")
    for more, message in (
        (["--budget-usd", "5"], "a budget needs the prices of a million tokens"),
        (["--usd-per-million-input", "5"], "give both or none"),
        (["--concurrency", "0"], "concurrency: Input should be greater"),
        (["--readings", "x"], "--readings is an option of --captioner readings, not of llm"),
        ([], "endpoint http://127.0.0.1:9/v1: connection refused"),
    ):
        assert main([*start, *more]) == 2
        error_line = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error_line
    assert not os.environ.get("OPENAI_BASE_URL")
