"""Tokens and money of a job that asks a language model, and the cap that it keeps."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from data_catalog.captions.llm.prompt_sizes import ImageSize, PromptSize, image_tokens
from data_catalog.errors import CatalogError

_MILLION = 1_000_000


@dataclass(frozen=True)
class Usage:
    """Tokens of requests: what was sent and what came back."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens
        )

    def longer_of(self, other: "Usage") -> "Usage":
        """The longer prompt and the longer answer of both."""
        return Usage(
            max(self.prompt_tokens, other.prompt_tokens), max(self.completion_tokens, other.completion_tokens)
        )


class Prices(BaseModel):
    """What an endpoint charges, in US dollars per million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: float = Field(ge=0, allow_inf_nan=False)
    completion: float = Field(ge=0, allow_inf_nan=False)

    def cost_usd(self, usage: Usage) -> float:
        """The price of so many tokens."""
        cost = usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion
        return cost / _MILLION


class BudgetError(CatalogError):
    """The budget does not cover another request."""


@dataclass
class Spending:
    """Counts what was spent, and lets a request go only where the budget covers it.

    A request's price is known when its answer is. So before it is sent, the dearest that it can be is set
    aside: all tokens that its prompt can have (`data_catalog.captions.llm.prompt_sizes`) and an answer of
    `max_answer_tokens`, and no less than was seen of any request before. An image is counted by its size,
    so once a prompt with an image was answered, others of that size take no more than that whole prompt did.
    What other requests in flight have set aside counts as spent. An answer that got lost on the way may have
    been charged all the same, so what was set aside for it stays spent.

    Attributes:
        prices: Prices; None where nobody asks for the cost.
        budget_usd: The cap; None where there is none. Needs prices.
        max_answer_tokens: Length at which an answer is cut.
        earlier: Tokens of answers that an earlier job paid.
        now: Tokens of this job's answers.
        lost: Tokens of requests that may have been charged and whose answers never came, at most; those of
            earlier jobs included.
        note_lost: Called with all that a later job must count as lost, whenever it grows.
    """

    prices: Prices | None
    budget_usd: float | None
    max_answer_tokens: int
    earlier: Usage = Usage()
    now: Usage = Usage()
    lost: Usage = Usage()
    note_lost: Callable[[Usage], None] = lambda lost: None
    _longest: Usage = Usage()
    _abandoned: Usage = Usage()
    _image_tokens: dict[ImageSize, int] = field(default_factory=dict)
    _set_aside: float = 0.0
    _in_flight: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cost_usd(self) -> float | None:
        """What all answers have cost, earlier jobs' and lost ones included; None without prices."""
        if self.prices is None:
            return None
        return self.prices.cost_usd(self.earlier + self.now + self.lost)

    def count_earlier(self, usage: Usage, requests: int, images: Sequence[ImageSize] = ()) -> None:
        """Add an answer that was there already.

        Args:
            usage: Its tokens.
            requests: How many requests it took.
            images: Size of each image that it was about.
        """
        self.earlier += usage
        self._longest = self._longest.longer_of(
            Usage(usage.prompt_tokens // requests, usage.completion_tokens // requests)
        )
        # The tokens of one of several requests may not have been told; then the others' say too little.
        if requests == 1:
            self._learn(images, usage)

    async def set_aside(self, prompt: PromptSize) -> Usage:
        """Wait until the budget covers another request, and set aside the tokens that it can take.

        Args:
            prompt: What is to be sent.

        Raises:
            BudgetError: If it does not, though no request is in flight any more.
        """
        # In the order of asking: a dear request would wait for ever while cheaper ones overtake it.
        async with self._turn:
            while True:
                most = self._most(prompt)
                price = self._price(most)
                spent = self.cost_usd or 0.0
                if self.budget_usd is None or spent + self._set_aside + price <= self.budget_usd:
                    self._set_aside += price
                    self._in_flight += 1
                    return most
                if self._in_flight == 0:
                    raise BudgetError(
                        f"budget_usd: {self.budget_usd:.2f} US dollars do not cover another request (spent: "
                        f"{spent:.4f}; the next may cost {price:.4f}); give more with --budget-usd and run "
                        "the same command again, what is answered is kept"
                    )
                self._settled.clear()
                await self._settled.wait()

    def settle(
        self, prompt: PromptSize, most: Usage, usage: Usage | None = None, *, lost: bool = False
    ) -> None:
        """Give back what was set aside for a request, and count what it cost.

        Args:
            prompt: What was sent.
            most: What `set_aside` gave.
            usage: Tokens of its answer.
            lost: Whether there is no answer and it may have been charged.
        """
        self._in_flight -= 1
        self._set_aside -= self._price(most)
        if usage is not None:
            self.now += usage
            self._longest = self._longest.longer_of(usage)
            self._learn(prompt.images, usage)
        self._settled.set()
        if lost:
            self.lost += most
            self.note_lost(self.lost + self._abandoned)

    def abandon(self, usage: Usage) -> None:
        """Note that answers which were counted are not kept: a later job would not find what they cost."""
        if usage != Usage():
            self._abandoned += usage
            self.note_lost(self.lost + self._abandoned)

    def _learn(self, images: Sequence[ImageSize], usage: Usage) -> None:
        # An endpoint that tells no tokens says nothing of an image.
        if usage.prompt_tokens == 0:
            return
        for size in images:
            known = self._image_tokens.get(size, usage.prompt_tokens)
            self._image_tokens[size] = min(known, usage.prompt_tokens)

    def _most(self, prompt: PromptSize) -> Usage:
        images = sum(self._image_tokens.get(size, image_tokens(size)) for size in prompt.images)
        return self._longest.longer_of(Usage(prompt.text_tokens + images, self.max_answer_tokens))

    def _price(self, usage: Usage) -> float:
        return 0.0 if self.prices is None else self.prices.cost_usd(usage)
