"""Asks the model a question, again where the answer cannot be used, and keeps what it answers.

What was not understood is not kept, and the job ends as soon as that is more than a share of the answers, or
if every answer is `unknown`: an endpoint that is set up wrong answers all questions so, and each is paid for.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_catalog.captions.llm.answers import Answer, AnswerStore
from data_catalog.captions.llm.budget import NO_USAGE, prompt_size
from data_catalog.captions.llm.client import LlmClient
from data_catalog.captions.llm.questions import Question, Values
from data_catalog.captions.llm.responses import Completion, presentable
from data_catalog.captions.predicted_attributes import UNKNOWN
from data_catalog.errors import CatalogError

_NAMED_FAULTS = 5
_LEAST_ANSWERS = 10
"""From so many answers on a share of them says something of the others."""
_MOST_UNKNOWN = 20
"""The job ends if so many answers, and no others, say `unknown` of every attribute."""


@dataclass
class Asker:
    """Asks each distinct question once; until an answer is usable, one question after the other.

    Attributes:
        client: Sends the requests.
        store: Keeps the answers.
        faults: Why questions were asked again, to how often.
        unusable: Digest of each question without a usable answer, to the answer; not kept.
        answers: How many answers there are, those of earlier jobs included.
    """

    client: LlmClient
    store: AnswerStore
    faults: Counter[str] = field(default_factory=Counter)
    unusable: dict[str, Answer] = field(default_factory=dict)
    answers: int = 0
    _in_flight: dict[str, asyncio.Task[Answer]] = field(default_factory=dict)
    _first: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    _unknown: dict[str, Answer] = field(init=False, default_factory=dict)
    _has_no_answer_yet: bool = field(init=False)

    def __post_init__(self) -> None:
        self._has_no_answer_yet = not self.answers

    async def ask(self, question: Question) -> Answer:
        """The answer, which is kept before this returns if anything in it is usable.

        A question to which the model gives no usable answer is asked again `reasks` times, each time with
        what was wrong. What is usable of its best answer is kept; the rest stays unknown for good.

        Raises:
            RequestFailedError: If the endpoint did not answer; nothing is kept.
            CatalogError: If the job must end, also because too many answers are unusable.
        """
        digest = question.digest
        # Two samples may hold the very same image.
        if digest not in self._in_flight:
            self._in_flight[digest] = asyncio.create_task(self._find(question))
            self._in_flight[digest].add_done_callback(lambda _: self._in_flight.pop(digest))
        return await self._in_flight[digest]

    async def _find(self, question: Question) -> Answer:
        digest = question.digest
        answer = self.unusable.get(digest) or self._unknown.get(digest)
        if answer is None:
            answer = await asyncio.to_thread(self.store.read, digest)
        if answer is not None:
            return answer
        async with self._first:
            if self.answers == len(self.unusable):
                return await self._answer(question)
        return await self._answer(question)

    async def _answer(self, question: Question) -> Answer:
        answer = await self._ask(question)
        self.answers += 1
        if answer.values:
            await self._keep(question.digest, answer)
        else:
            self.unusable[question.digest] = answer
            self.client.budget.abandon(answer.usage)
        self.refuse_unusable(_LEAST_ANSWERS, _MOST_UNKNOWN)
        return answer

    async def _keep(self, digest: str, answer: Answer) -> None:
        """Write an answer; while nothing is known from any, they are held back."""
        if self._has_no_answer_yet and _is_unknown(answer):
            self._unknown[digest] = answer
            return
        self._has_no_answer_yet = False
        kept, self._unknown = self._unknown | {digest: answer}, {}
        for name, one in kept.items():
            await asyncio.to_thread(self.store.write, name, one)

    def close(self) -> None:
        """Note what the answers have cost that are held back and so will not be kept."""
        for answer in self._unknown.values():
            self.client.budget.abandon(answer.usage)

    def refuse_unusable(self, least_answers: int = 0, most_unknown: int = 0) -> None:
        """End the job if its answers are no good.

        Args:
            least_answers: The share is taken of so many answers if there are fewer.
            most_unknown: How many may say nothing, if no other says anything.

        Raises:
            CatalogError: If more than the allowed share is unusable, or all of them say nothing.
        """
        settings, unusable = self.client.settings, len(self.unusable)
        if unusable > settings.unusable_share * max(self.answers, least_answers):
            counts = Counter(answer.fault for answer in self.unusable.values())
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
            raise CatalogError(
                f"endpoint {settings.endpoint}: {unusable} of {self.answers} answers cannot be used "
                f"({kinds}), more than unusable_share ({settings.unusable_share:g}) allows; they are not "
                "kept. Check that the model takes images and a JSON schema, give --max-answer-tokens more if "
                "it thinks first, or allow more with --unusable-share, and run the same command again"
            )
        if len(self._unknown) > most_unknown:
            raise CatalogError(
                f"endpoint {settings.endpoint}: all of the first {len(self._unknown)} answers say "
                f"{UNKNOWN!r} of every attribute; they are not kept. Check that the model takes images, and "
                "run the same command again"
            )

    async def _ask(self, question: Question) -> Answer:
        request = await asyncio.to_thread(question.request)
        messages = request["messages"]
        usage, best, kind, model, requests = NO_USAGE, Values(), "", "", 0
        while requests <= self.client.settings.reasks:
            requests += 1
            try:
                completion = await self.client.complete(request)
            except BaseException:
                # What the earlier answers cost is known to this job; the next one must know it too.
                self.client.budget.abandon(usage)
                raise
            usage += completion.usage or NO_USAGE
            model = completion.model or ""
            values, kind, fault = _judge(question, completion)
            best = max(values, best, key=len)
            if not kind:
                break
            self.faults[kind] += 1
            request = {**request, "messages": [*messages, *_correction(completion, fault)]}
        return Answer(
            values=best,
            # Not the description: it quotes the model, which may have read a licence plate.
            fault=kind,
            requests=requests,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            images=prompt_size(request).images,
            model=model,
        )


def _is_unknown(answer: Answer) -> bool:
    return all(isinstance(found, dict) and found["value"] == UNKNOWN for found in answer.values.values())


def _judge(question: Question, completion: Completion) -> tuple[Values, str, str]:
    """The usable values of a completion; kind and description of what is wrong with it, "" if nothing is."""
    if completion.refusal is not None:
        return {}, "refused", f"refused: {presentable(completion.refusal)}"
    if completion.text is None or not completion.text.strip():
        return {}, "empty", "it is empty"
    values, wrong = question.read(completion.text)
    if completion.finish_reason == "length" and wrong:
        return values, "cut", "it was cut off because it grew too long"
    return values, "malformed" if wrong else "", "; ".join(wrong[:_NAMED_FAULTS])


def _correction(completion: Completion, fault: str) -> list[Mapping[str, Any]]:
    """Messages that say what was wrong before the model answers again; a refusal is not argued with."""
    if completion.refusal is not None or not completion.text:
        return []
    return [
        {"role": "assistant", "content": completion.text},
        {
            "role": "user",
            "content": f"This answer cannot be used: {fault}. Answer again, with one JSON object under the "
            "schema, for all attributes, with the listed values only.",
        },
    ]
