import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from data_catalog.captions.llm.answers import AnswerStore
from data_catalog.captions.llm.budget import Usage
from data_catalog.errors import CatalogError
from data_catalog.inspect.verification import verify
from data_catalog.storage.filesystems import open_root
from data_catalog.tables.table import Table, list_tables
from tests.data_catalog.captions.llm.captioning import QUESTIONS, SAMPLES, caption, command
from tests.data_catalog.captions.llm.chat_server import (
    PROMPT_TOKENS,
    Reply,
    chat_server,
    error,
    fitting_answer,
    request_digest,
)
from tests.data_catalog.captions.llm.sending import COST, PRICES


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
        # An image of a size that was never paid for reserves 35.5 COST, one of a known size at less
        # than 10: the first budget covers nothing, the second may stop before the second size is known, and
        # the third job knows what the second has learned.
        for budget, least in ((20 * COST, 0), (40.5 * COST, 5), (66.5 * COST, 55)):
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
    assert cost > QUESTIONS * COST + 2 * Usage(PROMPT_TOKENS, 1500).cost_usd(PRICES)
    # Another model has lost nothing.
    with chat_server() as server:
        other = caption(samples, server, model="other", prices=PRICES, budget_usd=500 * COST)
    assert other.statistics["llm"]["cost_usd"] == pytest.approx(QUESTIONS * COST)


def test_interrupted_table_does_not_keep_gaps_that_a_later_run_has_filled(
    samples: Table, undisturbed: Table
) -> None:
    poisoned: set[str] = set()

    def behaviour(number: int, request: Mapping[str, Any]) -> Reply | None:
        if number == 6:
            poisoned.add(request_digest(request))
        return error(500, "poison") if request_digest(request) in poisoned else None

    with chat_server(behaviour) as server:
        begun = caption(samples, server, retries=0, failed="unknown")
        assert begun.statistics["llm"]["failed"] == 1
        (Path(begun.path) / "manifest.json").unlink()
        left = {path: path.stat().st_mtime_ns for path in Path(begun.path).glob("shard-*")}
        server.behaviour = lambda number, request: None
        paid = server.answered.total()
        table = caption(samples, server, failed="unknown")
    # The choice among what was read without the gap is of no use any more, but it was paid.
    assert table.statistics["llm"]["answers_kept_from_before"] == paid
    assert table.read().equals(undisturbed.read())
    remade = [path for path, changed in left.items() if path.stat().st_mtime_ns != changed]
    assert len(remade) == 1


def test_job_ends_at_the_first_answer_that_cannot_be_kept(
    samples: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(store: AnswerStore, digest: str, answer: object) -> None:
        raise OSError("disk failure")

    monkeypatch.setattr(AnswerStore, "write", write)
    with chat_server() as server, pytest.raises(OSError, match="disk failure"):
        caption(samples, server)
    # What was in flight is answered, and nothing else is asked.
    assert server.answered.total() == len(server.requests) < QUESTIONS


def test_kept_answers_need_no_endpoint(samples: Table, undisturbed: Table) -> None:
    answers = Path(AnswerStore.of_dataset(undisturbed.catalog, "small").root)
    shutil.copytree(answers, AnswerStore.of_dataset(samples.catalog, "small").root)
    with chat_server() as server:
        table = caption(samples, server)
        assert server.requests == []
    assert table.digest == undisturbed.digest
    # Nor does a table that exists need the answers.
    shutil.rmtree(AnswerStore.of_dataset(samples.catalog, "small").root)
    with chat_server() as server:
        assert caption(samples, server).reused
        assert server.requests == []


def moved(samples: Table, uri: str) -> Table:
    """The same table, alone in a catalog elsewhere."""
    filesystem, folder = open_root(uri)
    filesystem.create_dir(folder)
    fs.copy_files(samples.catalog, folder, destination_filesystem=filesystem)
    return replace(samples, catalog=uri)


@pytest.mark.parametrize("storage", ["local disk", "object storage"])
def test_jobs_at_the_same_time_pay_for_no_answer_twice(
    samples: Table, storage: str, object_storage: Callable[[str], str]
) -> None:
    if storage == "object storage":
        samples = moved(samples, object_storage("shared"))
    with chat_server() as server, ThreadPoolExecutor() as jobs:
        # Two tables, which ask the same questions in step one.
        tables = [jobs.submit(caption, samples, server, filling=filling) for filling in ("llm", "rules")]
        kept = [table.result().statistics["llm"]["answers_kept_from_before"] for table in tables]
        assert server.answered.total() == QUESTIONS
        assert max(server.answered.values()) == 1
    assert sorted(kept) == [0, 4 * SAMPLES]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["local disk", "object storage"])
def test_killed_job_goes_on_without_paying_twice(
    samples: Table, undisturbed: Table, storage: str, object_storage: Callable[[str], str]
) -> None:
    if storage == "object storage":
        samples = moved(samples, object_storage("killed"))
    early = {2: error(500, "broken"), 5: error(429, "slow", retry_after="0.02"), 9: Reply(is_hung=True)}
    late = {60: Reply("x", is_cut_off=True), 66: error(503, "later")}
    unusable = {7: Reply("no JSON"), 12: Reply(refusal="no")}

    def misbehave(number: int, request: Mapping[str, Any]) -> Reply:
        asked = {**request, "messages": request["messages"][:2]}
        return (early | late | unusable).get(number) or Reply(fitting_answer(asked), delay_seconds=0.03)

    store = AnswerStore.of_dataset(samples.catalog, "small")
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
