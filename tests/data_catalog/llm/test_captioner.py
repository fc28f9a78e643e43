import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from data_catalog.__main__ import main
from data_catalog.cards import load_card
from data_catalog.errors import CatalogError
from data_catalog.ingest import IngestSettings, ingest
from data_catalog.llm.answers import AnswerStore
from data_catalog.llm.captioner import LlmCaptionSettings, make_llm_captions
from data_catalog.llm.client import ClientSettings
from data_catalog.llm.spending import Prices, Usage
from data_catalog.sentences import PERSON, write_caption
from data_catalog.storage import open_root
from data_catalog.tables import Table, list_datasets, list_tables
from data_catalog.verify import verify
from tests.data_catalog.folders import sample_ids, write_data_set
from tests.data_catalog.llm.chat_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    ChatServer,
    Reply,
    chat_server,
    digest_of,
    error,
    fitting_answer,
    is_choice,
    offers_of,
)

KEY = "sk-secret-0123456789"
SAMPLES = 14
QUESTIONS = SAMPLES * 5
SOURCES = ("JOINT", "RGB", "NIR", "TIR")
PRICES = Prices(prompt=10, completion=30)
COST = (PROMPT_TOKENS * 10 + COMPLETION_TOKENS * 30) / 1e6


Asked = tuple[str, dict[str, Any], dict[str, Any]]
"""Source, request and answer."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A catalog with the samples alone; to be copied."""
    source, catalog = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("catalog")
    write_data_set(source)
    for path in source.rglob("*_01.jpg"):
        path.unlink()
    ingest(source, catalog, "small", IngestSettings(samples_per_shard=4))
    return catalog


@pytest.fixture
def samples(ingested: Path, tmp_path: Path) -> Table:
    """The samples table in a catalog without answers."""
    catalog = shutil.copytree(ingested, tmp_path / "catalog")
    [table] = list_tables(catalog, "small")
    return table


@pytest.fixture(scope="module")
def plain(ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, list[Asked]]:
    """The captions of a server that does all well, and what it was asked, sample by sample."""
    catalog = shutil.copytree(ingested, tmp_path_factory.mktemp("undisturbed") / "catalog")
    with chat_server() as server:
        [samples] = list_tables(catalog, "small")
        # One request at a time, so that the requests of a sample follow each other.
        table = caption(samples, server, concurrency=1)
        assert len(server.requests) == QUESTIONS
        return table, answers_of(server)


@pytest.fixture
def undisturbed(plain: tuple[Table, list[Asked]]) -> Table:
    """The table which a disturbed job must reach as well."""
    return plain[0]


def caption(samples: Table, server: ChatServer, asking: Any = None, **settings: Any) -> Table:
    of_client = {"concurrency": 4, "first_wait_seconds": 0.01, "timeout_seconds": 20}
    of_model = {"model": "tiny"}
    for name, value in settings.items():
        (of_client if name in ClientSettings.model_fields else of_model)[name] = value
    return make_llm_captions(
        samples,
        LlmCaptionSettings(**of_model),
        ClientSettings(endpoint=server.url, **of_client),
        asking=asking,
    )


def answers_of(server: ChatServer) -> list[Asked]:
    """Source, request and answer of every request; the source of step two is `choice`."""
    hints = {"side by side": "JOINT", "visible-light": "RGB", "near-infrared": "NIR", "thermal": "TIR"}
    found = []
    for request in server.requests:
        text = request["messages"][1]["content"][-1]["text"].splitlines()[0]
        source = "choice" if is_choice(request) else next(hints[hint] for hint in hints if hint in text)
        found.append((source, request, json.loads(fitting_answer(request))))
    return found


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


def test_every_caption_is_what_a_plain_reading_of_the_answers_gives(
    plain: tuple[Table, list[Asked]],
) -> None:
    table, asked = plain
    expected = []
    for first in range(0, len(asked), 5):
        group = asked[first : first + 5]
        assert sorted(source for source, _, _ in group) == sorted([*SOURCES, "choice"])
        read = {source: answer for source, _, answer in group}
        [(_, choice_request, choice)] = [entry for entry in group if entry[0] == "choice"]
        offers = offers_of(choice_request)
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


def test_disturbed_job_makes_the_same_table(samples: Table, undisturbed: Table) -> None:
    replies = {
        3: error(500, "broken"),
        5: Reply("x", is_cut_off=True),
        8: error(429, "slow", retry_after="0.05"),
        9: Reply("no JSON"),
        11: Reply(refusal="no"),
        12: Reply(body=b"<html>"),
        14: Reply("{}"),
        20: Reply(is_hung=True),
        30: Reply("late", delay_seconds=0.2, refusal="slow"),
    }
    with chat_server(lambda number, request: replies.get(number)) as server:
        seen: list[tuple[int, int]] = []
        # A sound answer to a question that was put again differs, since the question does.
        fitting = fitting_answer

        def behaviour(number: int, request: Mapping[str, Any]) -> Reply | None:
            if number in replies:
                return replies[number]
            plain = {**request, "messages": request["messages"][:2]}
            return Reply(fitting(plain))

        server.behaviour = behaviour
        table = caption(
            samples, server, asking=lambda done, total: seen.append((done, total)), timeout_seconds=3
        )
    assert table.digest == undisturbed.digest
    assert table.manifest.key == undisturbed.manifest.key
    llm = table.statistics["llm"]
    assert (llm["retries"], llm["rate_limited"]) == (4, 1)
    assert llm["reasked"] == {"malformed": 2, "refused": 2}
    assert llm["requests"] == QUESTIONS + len(replies)
    assert [done for done, _ in seen] == list(range(SAMPLES + 1))
    assert {total for _, total in seen} == {SAMPLES}


def test_budget_stops_the_job_and_what_is_answered_is_kept(samples: Table, undisturbed: Table) -> None:
    with chat_server() as server:
        # An image of a size that a job has not paid for yet is set aside at 35.5 COST or more: the first
        # budget does not cover one, and the last is given up only where less than that is left.
        for budget, least in ((20 * COST, 0), (40.5 * COST, 25), (74.5 * COST, 74.5 - 35.5)):
            with pytest.raises(CatalogError, match=r"do not cover another request .*--budget-usd"):
                caption(samples, server, prices=PRICES, budget_usd=budget, max_answer_tokens=1500)
            assert server.cost_usd(10, 30) <= budget
            assert (server.answered.total() >= least) if least else (server.requests == [])
            assert [table.kind.value for table in list_tables(samples.catalog, "small")] == ["samples"]
        answered = server.answered.total()
        table = caption(samples, server, prices=PRICES, budget_usd=500 * COST)
        assert max(server.answered.values()) == 1
        assert server.answered.total() == QUESTIONS
    assert table.digest == undisturbed.digest
    assert table.statistics["llm"]["answers_kept_from_before"] == answered
    assert table.statistics["llm"]["cost_usd"] == pytest.approx(QUESTIONS * COST)


def test_lost_answers_stay_spent_when_the_job_goes_on(samples: Table) -> None:
    lost = {4: Reply("x", is_cut_off=True), 7: Reply("x", is_cut_off=True)}
    with chat_server(lambda number, request: lost.get(number)) as server:
        with pytest.raises(CatalogError, match="do not cover another request"):
            caption(samples, server, prices=PRICES, budget_usd=50 * COST)
        table = caption(samples, server, prices=PRICES, budget_usd=500 * COST)
        assert server.answered.total() == QUESTIONS
    cost = table.statistics["llm"]["cost_usd"]
    assert cost > QUESTIONS * COST + 2 * PRICES.cost_usd(Usage(PROMPT_TOKENS, 1500))
    # Another model has lost nothing.
    with chat_server() as server:
        other = caption(samples, server, model="other", prices=PRICES, budget_usd=500 * COST)
    assert other.statistics["llm"]["cost_usd"] == pytest.approx(QUESTIONS * COST)


def test_unanswered_questions_stop_the_table_or_stay_unknown(samples: Table, undisturbed: Table) -> None:
    poisoned: set[str] = set()

    def behaviour(number: int, request: Mapping[str, Any]) -> Reply | None:
        if number == 6:
            poisoned.add(digest_of(request))
        return error(500, "poison") if digest_of(request) in poisoned else None

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


def test_interrupted_table_does_not_keep_gaps_that_a_later_run_has_filled(
    samples: Table, undisturbed: Table
) -> None:
    poisoned: set[str] = set()

    def behaviour(number: int, request: Mapping[str, Any]) -> Reply | None:
        if number == 6:
            poisoned.add(digest_of(request))
        return error(500, "poison") if digest_of(request) in poisoned else None

    with chat_server(behaviour) as server:
        begun = caption(samples, server, retries=0, failed="unknown")
        assert begun.statistics["llm"]["failed"] == 1
        (Path(begun.path) / "manifest.json").unlink()
        left = {path: path.stat().st_mtime_ns for path in Path(begun.path).glob("shard-*")}
        server.behaviour = lambda number, request: None
        table = caption(samples, server, failed="unknown")
    assert table.read().equals(undisturbed.read())
    remade = [path for path, changed in left.items() if path.stat().st_mtime_ns != changed]
    assert len(remade) == 1


def test_kept_answers_need_no_endpoint(samples: Table, undisturbed: Table) -> None:
    answers = Path(AnswerStore.of(undisturbed.catalog, "small").root)
    shutil.copytree(answers, AnswerStore.of(samples.catalog, "small").root)
    with chat_server() as server:
        table = caption(samples, server)
        assert server.requests == []
    assert table.digest == undisturbed.digest
    # Nor does a table that exists need the answers.
    shutil.rmtree(AnswerStore.of(samples.catalog, "small").root)
    with chat_server() as server:
        assert caption(samples, server).reused
        assert server.requests == []


def command(samples: Table, url: str, *more: str) -> list[str]:
    return [
        *("captions", "--catalog", samples.catalog, "--captioner", "llm", "--endpoint", url),
        *("--model", "tiny", "--concurrency", "4", *more),
    ]


def moved(samples: Table, uri: str) -> Table:
    """The same table, alone in a catalog elsewhere."""
    filesystem, folder = open_root(uri)
    filesystem.create_dir(folder)
    fs.copy_files(samples.catalog, folder, destination_filesystem=filesystem)
    return replace(samples, catalog=uri)


@pytest.mark.parametrize("place", ["local disk", "object storage"])
def test_killed_job_goes_on_without_paying_twice(
    samples: Table, undisturbed: Table, place: str, object_storage: Callable[[str], str]
) -> None:
    if place == "object storage":
        samples = moved(samples, object_storage("killed"))
    early = {2: error(500, "broken"), 5: error(429, "slow", retry_after="0.02"), 9: Reply(is_hung=True)}
    late = {60: Reply("x", is_cut_off=True), 66: error(503, "later")}
    unusable = {7: Reply("no JSON"), 12: Reply(refusal="no")}

    def misbehave(number: int, request: Mapping[str, Any]) -> Reply:
        asked = {**request, "messages": request["messages"][:2]}
        return (early | late | unusable).get(number) or Reply(fitting_answer(asked), delay_seconds=0.03)

    store = AnswerStore.of(samples.catalog, "small")
    with chat_server(misbehave) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "data_catalog", *command(samples, server.url)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while server.answered.total() < 22 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.1)
        kept, paid = len(store.digests()), server.answered.total() - len(unusable)
        # Only what was in flight or on its way into the store is lost: four questions of four samples.
        assert 0 <= paid - kept <= 4 * 4
        assert 0 < kept < QUESTIONS
        assert [table.kind.value for table in list_tables(samples.catalog, "small")] == ["samples"]
        table = caption(samples, server)
        assert server.answered.total() - len(unusable) == QUESTIONS + paid - kept
        # The server still holds the hung request of the process that was killed.
        assert server.most_at_once <= 4 + 1
    assert table.digest == undisturbed.digest
    assert table.statistics["llm"]["answers_kept_from_before"] == kept
    assert verify(samples.catalog, "small").errors == ()


def test_key_is_in_no_file_log_or_message(
    samples: Table, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def echoing(number: int, request: Mapping[str, Any]) -> Reply | None:
        return error(500, f"Bearer {KEY} failed") if number in (1, 2) else None

    caplog.set_level(logging.DEBUG)
    with chat_server(echoing) as server:
        assert main([*command(samples, server.url, "--redact"), "--json"]) == 0
        assert server.keys == {f"Bearer {KEY}"}
        told = json.loads(capsys.readouterr().out)
        assert told["redactions"] == {}
        server.behaviour = lambda number, request: error(401, f"wrong: {KEY}")
        assert main([*command(samples, server.url), "--model", "other"]) == 2
    output = capsys.readouterr()
    assert "does not accept the key (401: wrong: ***)" in output.err
    assert KEY not in output.out + output.err + caplog.text + json.dumps(told)
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
