"""The job that gets every question about a data set answered, before a table is made of the answers."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from data_catalog.captions.llm.prompts import ROW_COLUMNS
from data_catalog.captions.llm.questions import Question, Questions, Values, as_predictions
from data_catalog.captions.llm.responses import RequestFailedError
from data_catalog.captions.predicted_attributes import Predictions
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress, no_progress
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
        unusable: Digest of each question without a usable answer, to the answer; filled by `run`.
    """

    samples: Table
    questions: Questions
    store: AnswerStore
    client: ClientSettings
    unusable: dict[str, Answer] = field(init=False, default_factory=dict)
    _budget: Budget = field(init=False)
    _counts: Counter[str] = field(init=False, default_factory=Counter)
    _reasked: Counter[str] = field(init=False, default_factory=Counter)
    _failures: list[str] = field(init=False, default_factory=list)
    _kept: set[str] = field(init=False, default_factory=set)
    _done: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._budget = Budget(
            self.client.prices, self.client.budget_usd, self.questions.settings.max_answer_tokens
        )

    def run(self, progress: Progress = no_progress) -> None:
        """Get everything answered.

        Args:
            progress: Called with (samples done, samples in all).

        Raises:
            CatalogError: If the job must end early, or questions stay unanswered.
        """
        with self.store.claim():
            # Two models are two jobs: what one lost is no part of what the other costs.
            job = json_digest([self.questions.settings.sampling, self.questions.schema_digest])[:16]
            self._budget.lost = self.store.read_lost(job)
            self._budget.note_lost = partial(self.store.write_lost, job)
            missing = self._find_missing()
            self._done = len(self.samples) - sum(map(len, missing.values()))
            progress(self._done, len(self.samples))
            if missing:
                asyncio.run(self._ask_all(missing, progress))
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

    def _find_missing(self) -> dict[int, list[int]]:
        """Shard to the rows about which not everything is answered; what is answered is counted."""
        known = self.store.digests()

        def read(question: Question) -> Answer | None:
            return self.store.read(question.digest) if question.digest in known else None

        missing: dict[int, list[int]] = {}
        with ThreadPoolExecutor(READERS) as readers:
            for number in range(len(self.samples.manifest.shards)):
                rows = self.samples.read_shard(number, ROW_COLUMNS).to_pylist()
                found = readers.map(lambda row: read_sample(row, self.questions, read), rows)
                for row, sample in enumerate(found):
                    for question, answer in sample.answers:
                        if answer is not None and question.digest not in self._kept:
                            self._kept.add(question.digest)
                            self._budget.count_earlier(answer.usage, answer.requests, answer.images)
                    if any(answer is None for _, answer in sample.answers):
                        missing.setdefault(number, []).append(row)
        return missing

    async def _ask_all(self, missing: Mapping[int, list[int]], progress: Progress) -> None:
        client = LlmClient(self.client, self._budget, self._counts, was_answered_before=bool(self._kept))
        asker = Asker(client, self.store, self._reasked, self.unusable, len(self._kept))
        slots = asyncio.Semaphore(self.client.concurrency)
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    for number, wanted in missing.items():
                        rows = await asyncio.to_thread(self.samples.read_rows, number, wanted, ROW_COLUMNS)
                        for row in rows.to_pylist():
                            await slots.acquire()
                            if client.stopped_by:
                                raise client.stopped_by
                            task = tasks.create_task(self._ask_about(row, asker, progress))
                            task.add_done_callback(lambda _: slots.release())
                except (CatalogError, OSError) as error:
                    # The requests in flight are still answered: they are paid for.
                    client.stop(error)
        finally:
            asker.close()
            await client.close()
        if client.stopped_by:
            raise client.stopped_by
        asker.refuse_unusable()

    async def _ask_about(self, row: Mapping[str, Any], asker: Asker, progress: Progress) -> None:
        answers: dict[str, Answer | None] = {}

        async def ask(question: Question) -> None:
            answers[question.digest] = None
            try:
                answers[question.digest] = await asker.ask(question)
            except RequestFailedError as error:
                self._failures.append(f"sample {row['sample_id']}, {question.source}: {error}")
            except (CatalogError, OSError) as error:
                asker.client.stop(error)

        # Step two is known when step one is answered.
        while not asker.client.stopped_by:
            sample = read_sample(row, self.questions, lambda question: answers.get(question.digest))
            has_failed = None in answers.values() and self.questions.settings.failed == "stop"
            unasked = [question for question, _ in sample.answers if question.digest not in answers]
            if has_failed or not unasked:
                self._done += 1
                progress(self._done, len(self.samples))
                return
            await asyncio.gather(*map(ask, unasked))
