"""Asks the model a question, again where the answer cannot be used, and keeps what it answers."""

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

_NAMED_FAULTS = 5


@dataclass
class Asker:
    """Asks each distinct question once.

    Attributes:
        client: Sends the requests.
        store: Keeps the answers.
        faults: Why questions were asked again, to how often.
    """

    client: LlmClient
    store: AnswerStore
    faults: Counter[str] = field(default_factory=Counter)
    _in_flight: dict[str, asyncio.Task[Answer]] = field(default_factory=dict)

    async def ask(self, question: Question) -> Answer:
        """The answer, which is kept before this returns.

        A question to which the model gives no usable answer is asked again `reasks` times, each time with
        what was wrong. What is usable of its best answer is kept; the rest stays unknown for good.

        Raises:
            RequestFailedError: If the endpoint did not answer; nothing is kept.
            CatalogError: If the job must end.
        """
        digest = question.digest
        # Two samples may hold the very same image.
        if digest not in self._in_flight:
            self._in_flight[digest] = asyncio.create_task(self._find(question))
            self._in_flight[digest].add_done_callback(lambda _: self._in_flight.pop(digest))
        return await self._in_flight[digest]

    async def _find(self, question: Question) -> Answer:
        answer = await asyncio.to_thread(self.store.read, question.digest)
        if answer is None:
            answer = await self._ask(question)
            await asyncio.to_thread(self.store.write, question.digest, answer)
        return answer

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
