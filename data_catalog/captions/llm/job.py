"""The job that gets every question about a data set answered, before a table is made of the answers."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from data_catalog.captions.llm.answers import Answer, AnswerStore
from data_catalog.captions.llm.asker import Asker
from data_catalog.captions.llm.client import ClientSettings, LlmClient, RequestCounts
from data_catalog.captions.llm.question_images import ROW_COLUMNS
from data_catalog.captions.llm.questions import Question, Questions, as_predictions
from data_catalog.captions.llm.responses import RequestFailedError
from data_catalog.captions.llm.spending import Spending, Usage
from data_catalog.errors import CatalogError
from data_catalog.progress import Progress
from data_catalog.tables.table import Table, json_digest

_READERS = 16
_FAILURES_TOLD = 3


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
        has_choice: Whether step two is asked as well.
        stops_at_failure: Whether questions that stay unanswered are an error.
    """

    samples: Table
    questions: Questions
    store: AnswerStore
    client: ClientSettings
    has_choice: bool
    stops_at_failure: bool
    spending: Spending = field(init=False)
    counts: RequestCounts = field(init=False, default_factory=RequestCounts)
    reasked: Counter[str] = field(init=False, default_factory=Counter)
    failures: list[str] = field(init=False, default_factory=list)
    kept: set[str] = field(init=False, default_factory=set)
    known: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.spending = Spending(
            self.client.prices, self.client.budget_usd, self.questions.model.max_answer_tokens
        )

    def run(self, progress: Progress | None = None) -> None:
        """Get everything answered.

        Args:
            progress: Called with (samples done, samples in all).

        Raises:
            CatalogError: If the job must end early, or questions stay unanswered.
        """
        with self.store.only_user():
            # Two models are two jobs: what one lost is no part of what the other costs.
            job = json_digest([vars(self.questions.model), self.questions.schema_digest])[:16]
            self.spending.lost = self.store.read_lost(job)
            self.spending.note_lost = partial(self.store.write_lost, job)
            self.known = self.store.digests()
            missing = self._survey()
            report = progress or (lambda done, total: None)
            total = len(self.samples)
            done = total - sum(len(rows) for rows in missing.values())
            report(done, total)
            if missing:
                asyncio.run(self._ask_all(missing, done, report))
        if self.failures and self.stops_at_failure:
            raise CatalogError(
                f"{len(self.failures)} questions got no answer (first: "
                f"{'; '.join(self.failures[:_FAILURES_TOLD])}); run the same command again to ask them once "
                "more, what is answered is kept, or give --failed unknown to caption without them"
            )

    def report(self) -> dict[str, Any]:
        """What the job came to; JSON values."""
        tokens = self.spending.earlier + self.spending.now
        return {
            **asdict(self.counts),
            "reasked": dict(sorted(self.reasked.items())),
            "answers_kept_from_before": len(self.kept),
            "failed": len(self.failures),
            **asdict(tokens),
            "cost_usd": self.spending.cost_usd,
        }

    def _survey(self) -> dict[int, list[int]]:
        """Shard to the rows about which not everything is answered."""
        if not self.known:
            shards = enumerate(self.samples.manifest.shards)
            return {number: list(range(shard.rows)) for number, shard in shards if shard.rows}
        missing = {}
        with ThreadPoolExecutor(_READERS) as readers:
            for number in range(len(self.samples.manifest.shards)):
                rows = self.samples.read_shard(number, ROW_COLUMNS).to_pylist()
                found = list(readers.map(self._look_up_sample, rows))
                for answers, _ in found:
                    for digest, answer in answers.items():
                        self._count_kept(digest, answer)
                if unanswered := [row for row, (_, is_complete) in enumerate(found) if not is_complete]:
                    missing[number] = unanswered
        return missing

    def _count_kept(self, digest: str, answer: Answer) -> None:
        if digest not in self.kept:
            self.kept.add(digest)
            usage = Usage(answer.prompt_tokens, answer.completion_tokens)
            self.spending.count_earlier(usage, answer.requests, answer.images)

    def _look_up_sample(self, row: Mapping[str, Any]) -> tuple[dict[str, Answer], bool]:
        """The kept answers about a sample, by digest, and whether these are all."""
        answers: dict[str, Answer] = {}
        predictions: dict[str, Any] = {}
        is_complete = True
        for source, question in self.questions.about(row).items():
            if (answer := self._look_up(question)) is None:
                is_complete = False
            else:
                answers[question.digest] = answer
                predictions[source] = as_predictions(answer.values)
        # Also where step one is incomplete: what was paid then is paid.
        choice = self.questions.choice(predictions) if self.has_choice else None
        if choice is not None:
            if (answer := self._look_up(choice)) is None:
                is_complete = False
            else:
                answers[choice.digest] = answer
        return answers, is_complete

    def _look_up(self, question: Question) -> Answer | None:
        return self.store.read(question.digest) if question.digest in self.known else None

    async def _ask_all(self, missing: Mapping[int, list[int]], done: int, report: Progress) -> None:
        client = LlmClient(self.client, self.spending, self.counts, was_answered_before=bool(self.kept))
        asker = Asker(client, self.store, self.known, self.reasked)
        rows = self._rows(missing)
        turn = asyncio.Lock()

        async def work() -> None:
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
                    # Others finish what they have sent: it is paid for.
                    client.stop(error)
                else:
                    done += 1
                    report(done, len(self.samples))

        try:
            await asyncio.gather(*(work() for _ in range(self.client.concurrency)))
        finally:
            await client.close()
        if client.stopped_by:
            raise client.stopped_by

    def _rows(self, missing: Mapping[int, list[int]]) -> Iterator[dict[str, Any]]:
        for number, wanted in missing.items():
            yield from self.samples.read_shard(number, ROW_COLUMNS).take(wanted).to_pylist()

    async def _ask_about(self, asker: Asker, row: Mapping[str, Any]) -> None:
        questions = self.questions.about(row)
        found = await asyncio.gather(
            *(self._ask(asker, question, row) for question in questions.values()), return_exceptions=True
        )
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        predictions = {
            source: as_predictions(answer.values)
            for source, answer in zip(questions, found, strict=True)
            if isinstance(answer, Answer)
        }
        if len(predictions) < len(questions) and self.stops_at_failure:
            return
        if self.has_choice and (choice := self.questions.choice(predictions)) is not None:
            await self._ask(asker, choice, row)

    async def _ask(self, asker: Asker, question: Question, row: Mapping[str, Any]) -> Answer | None:
        try:
            return await asker.ask(question)
        except RequestFailedError as error:
            self.failures.append(f"sample {row['sample_id']}, {question.source}: {error}")
            return None
