"""Tokens and cost of a job that asks a language model, and the budget that it keeps.

The price of a request is known when its answer is. So before it is sent, the most that it can cost is
reserved. No tokenizer is asked, since it is the endpoint's: a token of text has at least one byte, so text
takes at most as many tokens as it has bytes in UTF-8. The tokens of an image follow from its size.
"""

import asyncio
import base64
import io
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pydantic
from PIL import Image
from pydantic import NonNegativeInt

from data_catalog.captions.llm.llm_settings import Prices
from data_catalog.errors import CatalogError

# What the endpoint's template puts around a conversation and around each of its messages.
_TEMPLATE_TOKENS, _TOKENS_PER_MESSAGE = 256, 16

# The most expensive published rule, that of gpt-4o-mini: the image is scaled until its short side has 768
# pixels and its long one at most 2048, then cut into tiles.
_SHORT_SIDE, _LONG_SIDE, _TILE_SIDE = 768, 2048, 512
_TOKENS_PER_IMAGE, _TOKENS_PER_TILE = 2833, 5667
# Open models take an image as it is, in patches of 14 x 14 pixels or more.
_PATCH_SIDE = 14

ImageSize = tuple[int, int]
"""Width and height, in pixels."""


@pydantic.dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of requests: sent, and received."""

    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens
        )

    def longest(self, other: "Usage") -> "Usage":
        """The longer prompt and the longer answer of both."""
        return Usage(
            max(self.prompt_tokens, other.prompt_tokens), max(self.completion_tokens, other.completion_tokens)
        )

    def cost_usd(self, prices: Prices) -> float:
        """US dollars."""
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1_000_000


NO_USAGE = Usage(0)


@dataclass(frozen=True)
class PromptSize:
    """What the tokens of a prompt are estimated from.

    Attributes:
        text_tokens: Tokens of its text and of the answer's schema, at most.
        images: Size of each of its images.
    """

    text_tokens: int
    images: tuple[ImageSize, ...] = ()


def prompt_size(request: Mapping[str, Any]) -> PromptSize:
    """The size of a request's prompt.

    Args:
        request: Arguments of `chat.completions.create`, with images as data URLs.
    """
    texts, images = [json.dumps(request.get("response_format"), ensure_ascii=False)], []
    for message in request["messages"]:
        content = message["content"]
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "image_url":
                data = part["image_url"]["url"].partition(",")[2]
                with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                    images.append(image.size)
            else:
                texts.append(part["text"])
    tokens = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return PromptSize(
        _TEMPLATE_TOKENS + _TOKENS_PER_MESSAGE * len(request["messages"]) + tokens, tuple(images)
    )


def image_tokens(size: ImageSize) -> int:
    """The most tokens that an image of this size takes, by any published rule."""
    short, long = sorted(size)
    scaled = min(_SHORT_SIDE * long / short, _LONG_SIDE)
    tiles = math.ceil(_SHORT_SIDE / _TILE_SIDE) * math.ceil(scaled / _TILE_SIDE)
    patches = math.ceil(short / _PATCH_SIDE) * math.ceil(long / _PATCH_SIDE)
    return max(_TOKENS_PER_IMAGE + tiles * _TOKENS_PER_TILE, patches)


def most_usage(
    prompt: PromptSize, max_answer_tokens: int, known: Mapping[ImageSize, int] | None = None
) -> Usage:
    """The most tokens that a request can take.

    Args:
        prompt: Its size.
        max_answer_tokens: Length at which an answer is cut.
        known: Tokens that images of some sizes took at most before.
    """
    images = sum((known or {}).get(size, image_tokens(size)) for size in prompt.images)
    return Usage(prompt.text_tokens + images, max_answer_tokens)


class BudgetError(CatalogError):
    """The budget does not cover another request."""


@dataclass
class Reservation:
    """Tokens reserved for one request.

    Attributes:
        most: The most that it can take.
        usage: What its answer took; to be set when it comes.
        is_lost: To be set if there is no answer and it may have been charged.
    """

    most: Usage
    usage: Usage | None = None
    is_lost: bool = False


@dataclass
class Budget:
    """Counts what is spent, and lets a request go only where the budget covers it.

    Reserved is the largest prompt that the request can have (`prompt_size`) with an answer of
    `max_answer_tokens`, and no less than any request took before. Once a prompt with an image of some size
    was answered, other images of that size are taken to need no more tokens than that whole prompt. An
    answer that was lost on the way may have been charged, so what was reserved for it stays spent.

    Attributes:
        prices: Prices; None where the cost is not asked for.
        limit_usd: The budget; None where there is none. Needs prices.
        max_answer_tokens: Length at which an answer is cut.
        earlier: Tokens of answers that an earlier job paid for.
        now: Tokens of this job's answers.
        lost: The most that requests can have taken whose answers never came, in earlier jobs as well.
        note_lost: Called with all that a later job must count as lost, whenever it grows.
    """

    prices: Prices | None
    limit_usd: float | None
    max_answer_tokens: int
    earlier: Usage = NO_USAGE
    now: Usage = NO_USAGE
    lost: Usage = NO_USAGE
    note_lost: Callable[[Usage], None] = lambda lost: None
    _longest: Usage = NO_USAGE
    _abandoned: Usage = NO_USAGE
    _image_tokens: dict[ImageSize, int] = field(default_factory=dict)
    _reserved: list[Usage] = field(default_factory=list)
    _queue: asyncio.Lock = field(default_factory=asyncio.Lock)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cost_usd(self) -> float | None:
        """What all answers have cost, with those of earlier jobs and lost ones; None without prices."""
        return None if self.prices is None else (self.earlier + self.now + self.lost).cost_usd(self.prices)

    def count_earlier(self, usage: Usage, requests: int, images: Sequence[ImageSize] = ()) -> None:
        """Add an answer that an earlier job paid for.

        Args:
            usage: Its tokens.
            requests: How many requests it took.
            images: Size of each image that was shown.
        """
        self.earlier += usage
        self._longest = self._longest.longest(
            Usage(usage.prompt_tokens // requests, usage.completion_tokens // requests)
        )
        # One of several requests may have been answered without its tokens; their sum is then too small.
        if requests == 1:
            self._learn(images, usage)

    @asynccontextmanager
    async def reserve(self, prompt: PromptSize) -> AsyncIterator[Reservation]:
        """Wait until the budget covers a request, and reserve the most that it can take while it runs.

        Args:
            prompt: What is to be sent.

        Raises:
            BudgetError: If the budget does not cover it, though no other request is in flight.
        """
        # In the order of asking: cheap requests would overtake an expensive one for ever.
        async with self._queue:
            while not self._covers(most := self._most(prompt)):
                self._settled.clear()
                await self._settled.wait()
            self._reserved.append(most)
        reservation = Reservation(most)
        try:
            yield reservation
        finally:
            self._reserved.remove(most)
            if reservation.usage is not None:
                self.now += reservation.usage
                self._longest = self._longest.longest(reservation.usage)
                self._learn(prompt.images, reservation.usage)
            self._settled.set()
            if reservation.is_lost:
                self.lost += most
                self.note_lost(self.lost + self._abandoned)

    def abandon(self, usage: Usage) -> None:
        """Note that answers which were counted are not kept: a later job would not find what they cost."""
        if usage != NO_USAGE:
            self._abandoned += usage
            self.note_lost(self.lost + self._abandoned)

    def _covers(self, most: Usage) -> bool:
        if self.prices is None or self.limit_usd is None:
            return True
        spent, price = self.cost_usd or 0.0, most.cost_usd(self.prices)
        if spent + sum(one.cost_usd(self.prices) for one in self._reserved) + price <= self.limit_usd:
            return True
        if self._reserved:
            return False
        raise BudgetError(
            f"budget_usd: {self.limit_usd:.2f} US dollars do not cover another request (spent: {spent:.4f}; "
            f"the next may cost {price:.4f}); give more with --budget-usd and run the same command again, "
            "what is answered is kept"
        )

    def _most(self, prompt: PromptSize) -> Usage:
        return self._longest.longest(most_usage(prompt, self.max_answer_tokens, self._image_tokens))

    def _learn(self, images: Sequence[ImageSize], usage: Usage) -> None:
        # An endpoint that reports no tokens says nothing of an image.
        if usage.prompt_tokens:
            for size in images:
                known = self._image_tokens.get(size, usage.prompt_tokens)
                self._image_tokens[size] = min(known, usage.prompt_tokens)
