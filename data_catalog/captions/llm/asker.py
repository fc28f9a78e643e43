"""Gets questions answered: from the kept answers, or else from the model, twice where need be."""

import asyncio
import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_catalog.captions.llm.answers import Answer, AnswerStore
from data_catalog.captions.llm.client import LlmClient
from data_catalog.captions.llm.prompt_sizes import prompt_size
from data_catalog.captions.llm.questions import Question, Values
from data_catalog.captions.llm.responses import Completion, presentable
from data_catalog.captions.llm.spending import Usage

_FAULTS_TOLD = 5


def request_of(question: Question) -> dict[str, Any]:
    """A question as the arguments of `chat.completions.create`."""
    content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
    if question.picture is not None:
        data = base64.b64encode(question.picture.jpeg()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    request: dict[str, Any] = {
        "model": question.model.name,
        "messages": [
            {"role": "system", "content": question.instructions},
            {"role": "user", "content": content},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "attributes", "strict": True, "schema": question.schema},
        },
        "max_completion_tokens": question.model.max_answer_tokens,
    }
    if question.model.temperature is not None:
        request["temperature"] = question.model.temperature
    return request


@dataclass
class Asker:
    """Asks each distinct question once.

    Attributes:
        client: Sends the requests.
        store: Keeps the answers.
        known: Digests of the questions that are answered; grows.
        faults: Why answers were put again, to how often.
    """

    client: LlmClient
    store: AnswerStore
    known: set[str]
    faults: Counter[str] = field(default_factory=Counter)
    _in_flight: dict[str, asyncio.Future[Answer]] = field(default_factory=dict)

    async def ask(self, question: Question) -> Answer:
        """The answer, which is kept before this returns.

        A question to which the model gives no usable answer is put again `reasks` times, each time with
        what was wrong. What is usable of its best answer is kept; the rest stays unknown for good.

        Raises:
            RequestFailedError: If the endpoint did not answer; nothing is kept.
            CatalogError: If the job must end.
        """
        digest = question.digest
        if digest in self._in_flight:
            # Two samples may hold the very same image.
            return await asyncio.shield(self._in_flight[digest])
        if digest in self.known and (answer := await asyncio.to_thread(self.store.read, digest)):
            return answer
        asking = asyncio.ensure_future(self._ask(question))
        self._in_flight[digest] = asking
        try:
            return await asking
        finally:
            del self._in_flight[digest]

    async def _ask(self, question: Question) -> Answer:
        request = await asyncio.to_thread(request_of, question)
        usage, best, kind, model, requests = Usage(), dict[str, Any](), "", "", 0
        messages = request["messages"]
        while requests <= self.client.settings.reasks:
            requests += 1
            try:
                completion = await self.client.complete(request)
            except BaseException:
                # What the earlier answers cost is known to this job; the next one must know it too.
                self.client.spending.abandon(usage)
                raise
            usage += completion.usage or Usage()
            model = completion.model
            values, kind, fault = _judge(question, completion)
            if len(values) >= len(best):
                best = values
            if not kind:
                break
            self.faults[kind] += 1
            request = {**request, "messages": [*messages, *_told(completion, fault)]}
        answer = Answer(
            values=best,
            # Not the description: it quotes the model, which may have read a licence plate.
            fault=kind,
            requests=requests,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            images=prompt_size(request).images,
            model=model,
        )
        await asyncio.to_thread(self.store.write, question.digest, answer)
        self.known.add(question.digest)
        return answer


def _judge(question: Question, completion: Completion) -> tuple[Values, str, str]:
    """The usable values of a completion; kind and description of what is wrong with it, "" if nothing is."""
    if completion.refusal is not None:
        return {}, "refused", f"refused: {presentable(completion.refusal)}"
    if completion.text is None or not completion.text.strip():
        return {}, "empty", "it is empty"
    values, wrong = question.read(completion.text)
    if completion.is_cut and wrong:
        return values, "cut", "it was cut off because it grew too long"
    return values, "malformed" if wrong else "", "; ".join(wrong[:_FAULTS_TOLD])


def _told(completion: Completion, fault: str) -> list[Mapping[str, Any]]:
    """What the model is told before it answers again; a refusal is not argued with."""
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
