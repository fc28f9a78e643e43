"""Asks an OpenAI-compatible endpoint, many requests at a time and patiently.

One client serves a whole job from one event loop: requests wait on the network, so one process is enough,
and what must hold over the job (how many requests at once, how much money) holds by construction. The key is
read from OPENAI_API_KEY, sent to the endpoint alone, and kept out of every message, log and file. A variable
of the environment is inherited, though: Ray that is started later by the same process has it, and does not
read it.

A fault is dealt with by its kind:

    no connection, wrong key, no such model   the job ends, before a second request is sent
    429, and any Retry-After                  everybody waits as long as the endpoint asks for
    5xx, time-out, cut off, no completion     sent again `retries` times, each after a longer wait
    nothing answered in `patience_seconds`    the job ends; what is answered is kept
"""

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, ConfigDict, Field

from data_catalog.captions.llm.prompt_sizes import prompt_size
from data_catalog.captions.llm.responses import (
    KEY_VARIABLE,
    Completion,
    EndpointError,
    FaultError,
    RateLimitError,
    RequestFailedError,
    api_key,
    read_completion,
    read_connection_error,
    read_status,
)
from data_catalog.captions.llm.spending import Prices, Spending
from data_catalog.errors import CatalogError
from data_catalog.storage.filesystems import presentable_uri

_LONGEST_WAIT_SECONDS = 60.0
_CONNECT_SECONDS = 10.0


class ClientSettings(BaseModel):
    """How an endpoint is asked; shapes no answer.

    Attributes:
        endpoint: Base URL, as a rule ending in `/v1`.
        concurrency: Requests at the same time, at most.
        timeout_seconds: Time limit of a request, from sending to the last byte.
        retries: How often a request is sent again after a fault of endpoint or network.
        reasks: How often a question is put again after an answer that is malformed or a refusal.
        patience_seconds: The job ends where nothing is answered for so long.
        first_wait_seconds: Wait before the first retry; doubles with each.
        prices: US dollars per million tokens.
        budget_usd: What the answers may cost, those of earlier jobs that this one uses included. Only what
            was in flight when a job was killed is not known to the next one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    concurrency: int = Field(8, ge=1, le=4096)
    timeout_seconds: float = Field(120.0, gt=0, allow_inf_nan=False)
    retries: int = Field(6, ge=0)
    reasks: int = Field(2, ge=0)
    patience_seconds: float = Field(600.0, gt=0, allow_inf_nan=False)
    first_wait_seconds: float = Field(1.0, gt=0, allow_inf_nan=False)
    prices: Prices | None = None
    budget_usd: float | None = Field(None, gt=0, allow_inf_nan=False)


def check_endpoint(settings: ClientSettings) -> None:
    """Refuse settings that no job can run with.

    Raises:
        CatalogError: If the endpoint is no plain http(s) URL, or a budget comes without prices.
    """
    try:
        parts = urlsplit(settings.endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise CatalogError(
            f"endpoint {presentable_uri(settings.endpoint)!r} is no URL; expected one such as "
            "http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password or parts.query:
        raise CatalogError(
            f"endpoint at {parts.hostname}: the URL holds a password or a query, which would be stored; give "
            f"the plain URL, and the key in {KEY_VARIABLE}"
        )
    if settings.budget_usd is not None and settings.prices is None:
        raise CatalogError(
            "budget_usd: a budget needs the prices of a million tokens, which differ between endpoints; give "
            "--usd-per-million-input and --usd-per-million-output"
        )


@dataclass
class RequestCounts:
    """What the requests of a job came to."""

    requests: int = 0
    retries: int = 0
    rate_limited: int = 0


@dataclass
class LlmClient:
    """Sends requests to one endpoint; made and used within one event loop.

    Attributes:
        settings: How to ask.
        spending: Counts tokens and keeps the budget.
        counts: What the requests came to.
        was_answered_before: Whether the endpoint has answered an earlier job. Then a first request that
            fails says nothing of the others: what an earlier job left over may be what cannot be answered.
        stopped_by: Why nothing is sent any more; None while requests are.
    """

    settings: ClientSettings
    spending: Spending
    counts: RequestCounts = field(default_factory=RequestCounts)
    was_answered_before: bool = False
    stopped_by: CatalogError | None = None

    def __post_init__(self) -> None:
        check_endpoint(self.settings)
        timeout, concurrency = self.settings.timeout_seconds, self.settings.concurrency
        self._client = openai.AsyncOpenAI(
            # An endpoint of one's own needs no key, but the library wants one.
            api_key=api_key() or "none",
            base_url=self.settings.endpoint,
            # Retries are this class's own: they must know of the budget and of each other.
            max_retries=0,
            timeout=openai.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            http_client=openai.DefaultAsyncHttpxClient(
                limits=type(openai.DEFAULT_CONNECTION_LIMITS)(
                    max_connections=concurrency, max_keepalive_connections=concurrency
                )
            ),
        )
        self._slots = asyncio.Semaphore(concurrency)
        self._first = asyncio.Lock()
        self._is_proven = False
        self._go_on_at = 0.0
        self._answered_at = time.monotonic()
        self._stopping = asyncio.Event()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def stop(self, error: CatalogError) -> None:
        """Send nothing more; requests in flight are still answered, since they are paid for."""
        self.stopped_by = self.stopped_by or error
        self._stopping.set()

    async def complete(self, request: Mapping[str, Any]) -> Completion:
        """The model's answer to a request, which holds the arguments of `chat.completions.create`.

        Until the first answer has come requests go one by one, so that a wrong key costs one request.

        Raises:
            EndpointError: If the endpoint cannot be used. Every other request then fails with it.
            BudgetError: If the budget is used up; the same.
            RequestFailedError: If this request got no answer.
        """
        try:
            if not self._is_proven:
                async with self._first:
                    if not self._is_proven:
                        completion = await self._complete(request, is_first=True)
                        self._is_proven = True
                        return completion
            return await self._complete(request, is_first=False)
        except RequestFailedError:
            raise
        except CatalogError as error:
            self.stop(error)
            raise

    async def _complete(self, request: Mapping[str, Any], *, is_first: bool) -> Completion:
        failures = rate_limits = 0
        while True:
            try:
                async with self._slots:
                    return await self._attempt(request, is_first=is_first)
            except RateLimitError as fault:
                rate_limits += 1
                self.counts.rate_limited += 1
                self._hold_off(fault.wait_seconds or self._backoff(rate_limits))
                self._refuse_where_patience_ends(fault)
            except FaultError as fault:
                failures += 1
                is_last = failures > self.settings.retries
                is_trial = is_first and not self.was_answered_before
                if (is_first and fault.is_refused) or (is_trial and is_last):
                    raise EndpointError(
                        f"endpoint {self.settings.endpoint}: {fault}; check that it runs and that the URL is "
                        "right (as a rule it ends in /v1)"
                    ) from None
                if is_last:
                    raise RequestFailedError(f"{fault}; sent {failures} times") from None
                self.counts.retries += 1
                if fault.wait_seconds:
                    self._hold_off(fault.wait_seconds)
                self._refuse_where_patience_ends(fault)
                await self._sleep(self._backoff(failures))

    async def _attempt(self, request: Mapping[str, Any], *, is_first: bool) -> Completion:
        prompt = prompt_size(request)
        while True:
            while (wait := self._go_on_at - time.monotonic()) > 0 and not self.stopped_by:
                await self._sleep(wait)
            most = await self.spending.set_aside(prompt)
            # The budget may have been waited for, and everybody been asked to wait meanwhile.
            if self._go_on_at <= time.monotonic() or self.stopped_by:
                break
            self.spending.settle(prompt, most)
        usage, is_lost = None, False
        try:
            if self.stopped_by:
                raise self.stopped_by
            self.counts.requests += 1
            completion = await self._send(request, is_first=is_first)
            usage = completion.usage
        except FaultError as fault:
            is_lost = fault.may_be_charged
            raise
        finally:
            self.spending.settle(prompt, most, usage, lost=is_lost)
        if usage is None and completion.text is not None and self.settings.budget_usd is not None:
            raise EndpointError(
                f"endpoint {self.settings.endpoint} does not tell how many tokens an answer took, so no "
                "budget can be kept; leave --budget-usd out"
            )
        self._answered_at = time.monotonic()
        return completion

    async def _send(self, request: Mapping[str, Any], *, is_first: bool) -> Completion:
        seconds = self.settings.timeout_seconds
        try:
            # The library's own limit is for each read, so a body that trickles in would never end.
            async with asyncio.timeout(seconds):
                response = await self._client.chat.completions.with_raw_response.create(**request)
        except (TimeoutError, openai.APITimeoutError):
            raise FaultError(f"no answer within {seconds:g} s", may_be_charged=True) from None
        except openai.APIConnectionError as error:
            raise read_connection_error(error) from None
        except openai.APIStatusError as error:
            is_trial = is_first and not self.was_answered_before
            return read_status(error, self.settings.endpoint, is_trial=is_trial)
        return read_completion(response.content)

    def _hold_off(self, seconds: float) -> None:
        """Let nobody send anything for so long."""
        if seconds > self.settings.patience_seconds:
            raise EndpointError(
                f"endpoint {self.settings.endpoint} asks to wait {seconds:.0f} s, more than patience_seconds "
                f"({self.settings.patience_seconds:g}); run the same command again later, what is answered "
                "is kept"
            )
        self._go_on_at = max(self._go_on_at, time.monotonic() + seconds)

    def _refuse_where_patience_ends(self, fault: FaultError) -> None:
        if time.monotonic() - self._answered_at > self.settings.patience_seconds:
            raise EndpointError(
                f"endpoint {self.settings.endpoint} has answered nothing for "
                f"{self.settings.patience_seconds:g} s (last: {fault}); run the same command again when it "
                "does, what is answered is kept"
            )

    def _backoff(self, failures: int) -> float:
        longest = min(self.settings.first_wait_seconds * 2.0 ** min(failures - 1, 30), _LONGEST_WAIT_SECONDS)
        # Spread out, so that requests that failed together do not come back together.
        return longest * random.uniform(0.5, 1.0)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
