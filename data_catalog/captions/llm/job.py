"""The job that gets every question about a data set answered, before a table is made of the answers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data_catalog.captions.caption_statistics import JobStatistics
from data_catalog.captions.llm.answers import Answer, AnswerStore
from data_catalog.captions.llm.asking import Asker
from data_catalog.captions.llm.budget import Budget
from data_catalog.captions.llm.client import LlmClient
from data_catalog.captions.llm.llm_settings import ClientSettings
from data_catalog.captions.llm.prompt_images import ROW_COLUMNS
from data_catalog.captions.llm.questions import Question, Questions, Values, as_predictions
from data_catalog.captions.llm.responses import RequestFailedError
from data_catalog.captions.predicted_attributes import Predictions
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress
from data_catalog.tables.digests import json_digest
from data_catalog.tables.table import Table

READERS = 16
"""Answers that are read at the same time; on object storage each takes a while."""

_NAMED_FAILURES = 3


@dataclass(frozen=True)
class SampleAnswers:
    """What is kept about a sample.

    Attributes:
        answers: The questions about it, each with its answer or None; step two as soon as it can be asked.
        predictions: Source to what its answer says.
        choice: What step two chose; None where it is not answered.
    """

    answers: Sequence[tuple[Question, Answer | None]]
    predictions: Predictions
    choice: Values | None = None


def read_sample(
    row: Mapping[str, Any], questions: Questions, read: Callable[[Question], Answer | None]
) -> SampleAnswers:
    """What is kept about a sample.

    Args:
        row: The sample, with ROW_COLUMNS.
        questions: Makes the questions.
        read: From a question to its kept answer.
    """
    step_one = [(question, read(question)) for question in questions.about(row).values()]
    predictions = {question.source: as_predictions(answer.values) for question, answer in step_one if answer}
    # Also where step one is incomplete: what was paid then is paid.
    choice = questions.choice(predictions)
    if choice is None:
        return SampleAnswers(step_one, predictions)
    answer = read(choice)
    return SampleAnswers([*step_one, (choice, answer)], predictions, answer.values if answer else None)


@dataclass
class AnswerJob:
    """Asks what is not answered yet.

    It first looks through the kept answers, without the network: what they cost counts towards the budget,
    and where nothing is missing no endpoint is needed. Then samples are asked about in their order, as many
    at a time as requests may be in flight.

    Attributes:
        samples: What is asked about.
        questions: What is asked.
        store: Where answers are kept.
        client: How the endpoint is asked.
    """

    samples: Table
    questions: Questions
    store: AnswerStore
    client: ClientSettings
    _budget: Budget = field(init=False)
    _counts: Counter[str] = field(init=False, default_factory=Counter)
    _reasked: dict[str, int] = field(init=False, default_factory=dict)
    _failures: list[str] = field(init=False, default_factory=list)
    _kept: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._budget = Budget(
            self.client.prices, self.client.budget_usd, self.questions.settings.max_answer_tokens
        )

    def run(self, progress: Progress | None = None) -> None:
        """Get everything answered.

        Args:
            progress: Called with (samples done, samples in all).

        Raises:
            CatalogError: If the job must end early, or questions stay unanswered.
        """
        with self.store.lock():
            # Two models are two jobs: what one lost is no part of what the other costs.
            job = json_digest([self.questions.settings.sampling, self.questions.schema_digest])[:16]
            self._budget.lost = self.store.read_lost(job)
            self._budget.note_lost = partial(self.store.write_lost, job)
            known = self.store.digests()
            missing = self._find_missing(known)
            report = progress or (lambda done, total: None)
            done = len(self.samples) - sum(map(len, missing.values()))
            report(done, len(self.samples))
            if missing:
                asyncio.run(self._ask_all(missing, known, done, report))
        if self._failures and self.questions.settings.failed == "stop":
            raise CatalogError(
                f"{len(self._failures)} questions got no answer (first: "
                f"{'; '.join(self._failures[:_NAMED_FAILURES])}); run the same command again to ask them "
                "once more, what is answered is kept, or give --failed unknown to caption without them"
            )

    def statistics(self) -> JobStatistics:
        """What the job came to."""
        return JobStatistics(
            requests=self._counts["requests"],
            retries=self._counts["retries"],
            rate_limited=self._counts["rate_limited"],
            reasked=dict(sorted(self._reasked.items())),
            answers_kept_from_before=len(self._kept),
            failed=len(self._failures),
            **vars(self._budget.earlier + self._budget.now),
            cost_usd=self._budget.cost_usd,
        )

    def _find_missing(self, known: set[str]) -> dict[int, list[int]]:
        """Shard to the rows about which not everything is answered; what is answered is counted."""

        def read(question: Question) -> Answer | None:
            return self.store.read(question.digest) if question.digest in known else None

        missing: dict[int, list[int]] = {}
        with ThreadPoolExecutor(READERS) as readers:
            for number, shard in enumerate(self.samples.manifest.shards):
                missing[number] = list(range(shard.rows))
                if known:
                    rows = self.samples.read_shard(number, ROW_COLUMNS).to_pylist()
                    found = list(readers.map(lambda row: read_sample(row, self.questions, read), rows))
                    for question, answer in (entry for sample in found for entry in sample.answers):
                        if answer is not None and question.digest not in self._kept:
                            self._kept.add(question.digest)
                            self._budget.count_earlier(answer.usage, answer.requests, answer.images)
                    missing[number] = [
                        row
                        for row, sample in enumerate(found)
                        if any(answer is None for _, answer in sample.answers)
                    ]
        return {number: rows for number, rows in missing.items() if rows}

    async def _ask_all(
        self, missing: Mapping[int, list[int]], known: set[str], done: int, report: Progress
    ) -> None:
        client = LlmClient(self.client, self._budget, self._counts, was_answered_before=bool(self._kept))
        asker = Asker(client, self.store, known)
        self._reasked = asker.faults
        rows = self._rows(missing)
        turn = asyncio.Lock()

        async def ask_about_rows() -> None:
            nonlocal done
            while not client.stopped_by:
                # A generator runs in one thread at a time.
                async with turn:
                    row = await asyncio.to_thread(next, rows, None)
                if row is None:
                    return
                try:
                    await self._ask_about(asker, row)
                except CatalogError as error:
                    # The other requests in flight are still answered: they are paid for.
                    client.stop(error)
                else:
                    done += 1
                    report(done, len(self.samples))

        try:
            await asyncio.gather(*(ask_about_rows() for _ in range(self.client.concurrency)))
        finally:
            await client.close()
        if client.stopped_by:
            raise client.stopped_by

    def _rows(self, missing: Mapping[int, list[int]]) -> Iterator[dict[str, Any]]:
        for number, wanted in missing.items():
            yield from self.samples.read_shard(number, ROW_COLUMNS).take(wanted).to_pylist()

    async def _ask_about(self, asker: Asker, row: Mapping[str, Any]) -> None:
        async def ask(question: Question) -> Answer | None:
            try:
                return await asker.ask(question)
            except RequestFailedError as error:
                self._failures.append(f"sample {row['sample_id']}, {question.source}: {error}")
                return None

        step_one = self.questions.about(row)
        found = await asyncio.gather(*map(ask, step_one.values()), return_exceptions=True)
        predictions = {}
        for source, answer in zip(step_one, found, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                predictions[source] = as_predictions(answer.values)
        if len(predictions) < len(step_one) and self.questions.settings.failed == "stop":
            return
        if (choice := self.questions.choice(predictions)) is not None:
            await ask(choice)
