"""What an endpoint's response means: an answer, a refusal, a fault that may pass, or the end of the job."""

import email.utils
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import openai
from pydantic import BaseModel, Field, ValidationError

from data_catalog.captions.llm.spending import Usage
from data_catalog.errors import CatalogError

KEY_VARIABLE = "OPENAI_API_KEY"
_REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation", "moderation_blocked"})
_MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class Completion:
    """What the model said.

    Attributes:
        text: The answer; None where there is none.
        usage: Tokens; None where the endpoint does not tell.
        refusal: Why the model or the endpoint's filter gave no answer; None where it did.
        is_cut: Whether the answer ends because it grew too long.
        model: The model that answered, by the endpoint's account.
    """

    text: str | None
    usage: Usage | None = None
    refusal: str | None = None
    is_cut: bool = False
    model: str = ""


class EndpointError(CatalogError):
    """The endpoint cannot be used, so that the job must end."""


class RequestFailedError(CatalogError):
    """One request got no answer, however often it was sent."""


class FaultError(Exception):
    """A request that may be sent again.

    Attributes:
        is_refused: Whether there was not even a connection.
        may_be_charged: Whether an answer may have been made and lost.
        wait_seconds: How long the endpoint asks to wait; None where it does not.
    """

    def __init__(
        self,
        message: str,
        *,
        is_refused: bool = False,
        may_be_charged: bool = False,
        wait_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.is_refused = is_refused
        self.may_be_charged = may_be_charged
        self.wait_seconds = wait_seconds


class RateLimitError(FaultError):
    """The endpoint wants fewer requests; sent again as long as others get through."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(0, ge=0)


class _Body(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str | None = None


def api_key() -> str:
    """The key from the environment, "" where there is none.

    Raises:
        CatalogError: If it holds characters that no header can carry; the message does not show it.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CatalogError(f"{KEY_VARIABLE} holds characters that no key has; set it to the key alone")
    return key


def presentable(text: object) -> str:
    """A message fit for a terminal and a log: one line, not long, and without the key."""
    line = " ".join(str(text).split())
    if key := api_key():
        line = line.replace(key, "***")
    return line if len(line) <= _MESSAGE_LENGTH else f"{line[:_MESSAGE_LENGTH]}..."


def read_completion(content: bytes) -> Completion:
    """The completion in the body of a response.

    Raises:
        FaultError: If the body is none: cut off, not JSON, or of another protocol.
    """
    try:
        body = _Body.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise FaultError(
            f"the answer is no chat completion ({where}: {presentable(first['msg'])})", may_be_charged=True
        ) from None
    choice, used = body.choices[0], body.usage
    refusal = choice.message.refusal
    if refusal is None and choice.finish_reason == "content_filter":
        refusal = "the endpoint's filter withheld the answer"
    return Completion(
        text=choice.message.content,
        usage=None if used is None else Usage(used.prompt_tokens, used.completion_tokens),
        refusal=refusal,
        is_cut=choice.finish_reason == "length",
        model=body.model or "",
    )


def read_connection_error(error: openai.APIConnectionError) -> FaultError:
    """What it means that there is no whole response."""
    cause = error.__cause__ or error
    is_refused = type(cause).__name__ in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol")
    return FaultError(
        f"connection {'refused' if is_refused else 'broken off'} ({presentable(cause)})",
        is_refused=is_refused,
        may_be_charged=not is_refused,
    )


def read_status(error: openai.APIStatusError, endpoint: str, *, is_trial: bool) -> Completion:
    """What a status from 400 on means: a completion that refuses, where a filter did.

    Args:
        error: The status and what came with it.
        endpoint: The endpoint's URL, for messages.
        is_trial: Whether the endpoint has never answered a request.

    Raises:
        EndpointError: If no request can be answered.
        RateLimitError: If there were too many.
        FaultError: If it may pass.
        RequestFailedError: If the endpoint will not have this request.
    """
    body = error.body if isinstance(error.body, Mapping) else {}
    said = presentable(body.get("message") or error.message)
    status, wait = error.status_code, retry_after_seconds(error.response.headers)
    if status in (401, 403):
        missing = "" if api_key() else " (it is not set)"
        raise EndpointError(
            f"endpoint {endpoint} does not accept the key ({status}: {said}); set {KEY_VARIABLE} to a key "
            f"for it{missing}"
        )
    if status == 404:
        raise EndpointError(
            f"endpoint {endpoint} does not know the model or the path ({status}: {said}); check --model, and "
            "that --endpoint is the base URL (as a rule it ends in /v1)"
        )
    if status == 429 and error.code == "insufficient_quota":
        raise EndpointError(
            f"endpoint {endpoint}: the account has no money left ({said}); top it up and run the same "
            "command again, what is answered is kept"
        )
    if status == 429:
        raise RateLimitError(f"too many requests ({status}: {said})", wait_seconds=wait)
    if status in (408, 409) or status >= 500:
        raise FaultError(f"the endpoint failed ({status}: {said})", wait_seconds=wait)
    if error.code in _REFUSAL_CODES:
        return Completion(None, refusal=f"the endpoint's filter refused the request ({said})")
    if is_trial:
        raise EndpointError(
            f"endpoint {endpoint} refuses the request ({status}: {said}); the model must take images and a "
            "JSON schema as response format"
        )
    raise RequestFailedError(f"the endpoint refuses the request ({status}: {said})")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What Retry-After asks for, as seconds or as a date; None where it is absent, malformed or past."""
    value = headers.get("retry-after")
    seconds: float | None = None
    for text, unit in ((headers.get("retry-after-ms"), 1000.0), (value, 1.0)):
        if text is not None and seconds is None:
            with suppress(ValueError):
                seconds = float(text) / unit
    if seconds is None and value is not None:
        with suppress(ValueError):
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    # The comparison also leaves out "nan".
    return seconds if seconds is not None and seconds > 0 else None
