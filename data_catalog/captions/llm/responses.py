"""What an endpoint's response means: an answer, a refusal, a fault that may pass, or the end of the job."""

import email.utils
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import openai
from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError

from data_catalog.captions.llm.budget import Usage
from data_catalog.captions.llm.llm_settings import KEY_VARIABLE
from data_catalog.errors import CatalogError

_REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation", "moderation_blocked"})
_MESSAGE_LENGTH = 300


class EndpointError(CatalogError):
    """The endpoint cannot be used, so that the job must end."""


class RequestFailedError(CatalogError):
    """One request got no answer, however often it was sent."""


class FaultError(Exception):
    """A request failed in a way that may pass.

    Attributes:
        wait_seconds: How long the endpoint asks to wait; 0 where it does not.
    """

    def __init__(self, message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class RefusedError(FaultError):
    """There was not even a connection."""


class RateLimitError(FaultError):
    """The endpoint wants fewer requests."""


class LostAnswerError(FaultError):
    """An answer may have been made, and charged."""


class Completion(BaseModel):
    """What the model said, from the JSON of a chat completion.

    The openai client does not validate what it receives, and its own models want more than endpoints send.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True)

    message: Mapping[str, Any] = Field(validation_alias=AliasPath("choices", 0, "message"), repr=False)
    text: str | None = Field(None, validation_alias=AliasPath("choices", 0, "message", "content"))
    """The answer; None where there is none."""
    refusal: str | None = Field(None, validation_alias=AliasPath("choices", 0, "message", "refusal"))
    """Why the model or the endpoint's filter gave no answer; None where it did."""
    finish_reason: str | None = Field(None, validation_alias=AliasPath("choices", 0, "finish_reason"))
    """`length` where the answer was cut, `content_filter` where a filter withheld it."""
    usage: Usage | None = None
    """Tokens; None where the endpoint does not report them."""
    model: str | None = None
    """The model that answered, as the endpoint reports it."""


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
        LostAnswerError: If the body is none: cut off, not JSON, or of another protocol.
    """
    try:
        completion = Completion.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        raise LostAnswerError(
            f"the answer is not a chat completion ({field}: {presentable(first['msg'])})"
        ) from None
    if completion.refusal is None and completion.finish_reason == "content_filter":
        return completion.model_copy(update={"refusal": "the endpoint's filter withheld the answer"})
    return completion


def connection_fault(error: openai.APIConnectionError) -> FaultError:
    """What it means that there is no whole response."""
    cause = error.__cause__ or error
    kind = type(cause).__name__
    # A time-out has no words of its own.
    reason = presentable(cause) or kind
    if kind in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol"):
        return RefusedError(f"connection refused ({reason})")
    return LostAnswerError(f"connection broken off ({reason})")


def read_status(error: openai.APIStatusError, endpoint: str) -> Completion:
    """What a status from 400 on means; a filter's refusal is a completion.

    Args:
        error: The status and what came with it.
        endpoint: The endpoint's URL, for messages.

    Raises:
        EndpointError: If no request can be answered.
        FaultError: If it may pass.
        RequestFailedError: If the endpoint refuses this request.
    """
    body = error.body if isinstance(error.body, Mapping) else {}
    message, status = presentable(body.get("message") or error.message), error.status_code
    if status in (401, 403):
        missing = "" if api_key() else " (it is not set)"
        raise EndpointError(
            f"endpoint {endpoint} does not accept the key ({status}: {message}); set {KEY_VARIABLE} to a key "
            f"for it{missing}"
        )
    if status == 404:
        raise EndpointError(
            f"endpoint {endpoint} does not know the model or the path ({status}: {message}); check --model, "
            "and that --endpoint is the base URL (as a rule it ends in /v1)"
        )
    if status == 429 and error.code == "insufficient_quota":
        raise EndpointError(
            f"endpoint {endpoint}: the account has no money left ({message}); top it up and run the same "
            "command again, what is answered is kept"
        )
    wait_seconds = retry_after_seconds(error.response.headers)
    if status == 429:
        raise RateLimitError(f"too many requests ({status}: {message})", wait_seconds)
    if status in (408, 409) or status >= 500:
        raise FaultError(f"the endpoint failed ({status}: {message})", wait_seconds)
    if error.code in _REFUSAL_CODES:
        return Completion(message={}, refusal=f"the endpoint's filter refused the request ({message})")
    raise RequestFailedError(f"the endpoint refuses the request ({status}: {message})")


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """What Retry-After asks for, as seconds or as a date; 0 where it is absent, malformed or past."""
    value, milliseconds = headers.get("retry-after", ""), headers.get("retry-after-ms", "")
    seconds = 0.0
    with suppress(ValueError):
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    with suppress(ValueError):
        seconds = float(value)
    with suppress(ValueError):
        seconds = float(milliseconds) / 1000
    # The comparison also leaves out "nan".
    return seconds if seconds > 0 else 0.0
