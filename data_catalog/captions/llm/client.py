"""Asks an OpenAI-compatible endpoint, many requests at a time and patiently.

One client serves a whole job from one event loop: requests wait on the network, so one process is enough,
and limits of the whole job (requests at once, money) are easy to keep. The key is
read from OPENAI_API_KEY, sent to the endpoint alone, and kept out of every message, log and file. (Ray that
is started later by the same process inherits the variable, and does not read it.)

The openai client sends requests, pools connections and classifies errors. Its own retries are off: they count
rate limits as failures, let the other requests go on meanwhile, give up after half a minute, repeat no
answer that is not a completion, and go on when the job has ended. What happens here, by kind of fault:

    no connection, wrong key, no such model   the job ends, before a second request is sent
    429, and any Retry-After                  every request waits as long as the endpoint asks for
    5xx, time-out, cut off, no completion     sent again `retries` times, each after a longer wait
    nothing answered in `patience_seconds`    the job ends; what is answered is kept
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import openai

from data_catalog.captions.llm.budget import Budget, prompt_size
from data_catalog.captions.llm.llm_settings import ClientSettings
from data_catalog.captions.llm.responses import (
    Completion,
    EndpointError,
    FaultError,
    LostAnswerError,
    RateLimitError,
    RefusedError,
    RequestFailedError,
    api_key,
    connection_fault,
    read_completion,
    read_status,
)
from data_catalog.errors import CatalogError
from stmi.network import is_loopback, through_proxy

_LONGEST_WAIT_SECONDS = 60.0
_CONNECT_SECONDS = 10.0


@dataclass
class LlmClient:
    """Sends requests to one endpoint; made and used within one event loop.

    Attributes:
        settings: How to ask.
        budget: Counts tokens and keeps the budget.
        counts: How many `requests` were sent, `retries` among them after a fault, and how many were
            `rate_limited`.
        was_answered_before: Whether the endpoint has answered an earlier job. Then a first request that
            fails says nothing of the others: an earlier job may have left only what cannot be answered.
        stopped_by: Why nothing is sent any more; None while requests are.
    """

    settings: ClientSettings
    budget: Budget
    counts: Counter[str] = field(default_factory=Counter)
    was_answered_before: bool = False
    stopped_by: Exception | None = None

    def __post_init__(self) -> None:
        self._client = self._open()
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._first = asyncio.Lock()
        self._is_proven = False
        self._resume_at = 0.0
        self._answered_at = time.monotonic()
        self._stopping = asyncio.Event()

    def _open(self) -> openai.AsyncOpenAI:
        concurrency, endpoint = self.settings.concurrency, self.settings.endpoint
        try:
            connections = openai.DefaultAsyncHttpxClient(
                limits=type(openai.DEFAULT_CONNECTION_LIMITS)(
                    max_connections=concurrency, max_keepalive_connections=concurrency
                ),
                # Proxies are in the environment, and are no way to this machine.
                trust_env=not is_loopback(endpoint),
            )
        except ImportError as error:
            # Raised for a SOCKS proxy, whichever host it is for.
            raise EndpointError(
                f"endpoint {endpoint} cannot be asked{through_proxy(endpoint)}: {error} Or unset all_proxy "
                "and ALL_PROXY"
            ) from None
        return openai.AsyncOpenAI(
            # An endpoint of one's own needs no key, but the library wants one.
            api_key=api_key() or "none",
            base_url=endpoint,
            max_retries=0,
            # Its limit is per read, so a body that comes byte by byte would never end; `_send` has a limit.
            timeout=openai.Timeout(None, connect=_CONNECT_SECONDS),
            http_client=connections,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def stop(self, error: Exception) -> None:
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
            async with self._first:
                if not self._is_proven:
                    return await self._complete(request)
            return await self._complete(request)
        except RequestFailedError as error:
            if self._is_proven or self.was_answered_before:
                raise
            ending: CatalogError = self._unusable(error)
        except CatalogError as error:
            ending = error
        self.stop(ending)
        raise ending

    async def _complete(self, request: Mapping[str, Any]) -> Completion:
        failures = rate_limits = 0
        while True:
            try:
                async with self._slots:
                    return await self._attempt(request)
            except RateLimitError as fault:
                rate_limits += 1
                self.counts["rate_limited"] += 1
                self._hold_all(fault, fault.wait_seconds or self._backoff(rate_limits))
            except FaultError as fault:
                failures += 1
                if isinstance(fault, RefusedError) and not self._is_proven:
                    raise self._unusable(fault) from None
                if failures > self.settings.retries:
                    raise RequestFailedError(f"{fault}; sent {failures} times") from None
                self.counts["retries"] += 1
                self._hold_all(fault, fault.wait_seconds)
                await self._sleep(self._backoff(failures))

    async def _attempt(self, request: Mapping[str, Any]) -> Completion:
        async with self.budget.reserve(prompt_size(request)) as reservation:
            while (wait := self._resume_at - time.monotonic()) > 0 and not self.stopped_by:
                await self._sleep(wait)
            if self.stopped_by:
                raise self.stopped_by
            self.counts["requests"] += 1
            try:
                completion = await self._send(request)
            except LostAnswerError:
                reservation.is_lost = True
                raise
            reservation.usage = completion.usage
        if completion.usage is None and completion.text is not None and self.settings.budget_usd is not None:
            raise EndpointError(
                f"endpoint {self.settings.endpoint} does not report how many tokens an answer took, so no "
                "budget can be kept; leave --budget-usd out"
            )
        self._is_proven, self._answered_at = True, time.monotonic()
        return completion

    async def _send(self, request: Mapping[str, Any]) -> Completion:
        seconds = self.settings.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                response = await self._client.chat.completions.with_raw_response.create(**request)
        except TimeoutError:
            raise LostAnswerError(f"no answer within {seconds:g} s") from None
        except openai.APIConnectionError as error:
            raise connection_fault(error) from None
        except openai.APIStatusError as error:
            return read_status(error, self.settings.endpoint)
        return read_completion(response.content)

    def _unusable(self, reason: Exception) -> EndpointError:
        endpoint = self.settings.endpoint
        return EndpointError(
            f"endpoint {endpoint}{through_proxy(endpoint)}: {reason}; check that it runs, that the URL is "
            "right (as a rule it ends in /v1), and that the model takes images and a JSON schema as "
            "response format"
        )

    def _hold_all(self, fault: FaultError, seconds: float) -> None:
        """Send nothing for so long, unless that ends the job's patience."""
        patience, now = self.settings.patience_seconds, time.monotonic()
        if seconds > patience:
            raise EndpointError(
                f"endpoint {self.settings.endpoint} asks to wait {seconds:.0f} s, more than patience_seconds "
                f"({patience:g}); run the same command again later, what is answered is kept"
            )
        if now - self._answered_at > patience:
            raise EndpointError(
                f"endpoint {self.settings.endpoint} has answered nothing for {patience:g} s (last: {fault}); "
                "run the same command again when it does, what is answered is kept"
            )
        self._resume_at = max(self._resume_at, now + seconds)

    def _backoff(self, failures: int) -> float:
        longest = min(self.settings.first_wait_seconds * 2.0 ** min(failures - 1, 30), _LONGEST_WAIT_SECONDS)
        # Random, so that requests that failed together are not sent again together.
        return longest * random.uniform(0.5, 1.0)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
