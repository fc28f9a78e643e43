"""What is asked of a language model, and how its endpoint is used: settings alone, which import no client."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from data_catalog.errors import CatalogError
from data_catalog.records import Record
from stmi.config import LARGEST_COUNT
from stmi.uris import presentable_uri

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable that holds the endpoint's key."""


class LlmCaptionSettings(Record):
    """How a language model captions; with the samples, this decides which table it is."""

    captioner: Literal["llm"] = "llm"
    model: str = Field(min_length=1)
    """The model's name, as the endpoint knows it, for example gpt-4o."""
    card: str = "synthetic_person"
    """Card whose attributes are asked for and whose template writes the sentence."""
    filling: Literal["llm", "rules"] = "llm"
    """Who decides between predictions that differ: the model (step two), or the rule that the most confident
    prediction wins. The rule also decides where the model's choice cannot be used."""
    redact: bool = False
    """Whether the model is asked to read no text in the images."""
    temperature: float | None = Field(0.0, ge=0, allow_inf_nan=False)
    """Sampling temperature; None leaves it to the endpoint, as some models demand."""
    max_answer_tokens: int = Field(1500, ge=1, le=LARGEST_COUNT)
    """Length at which an answer is cut."""
    failed: Literal["stop", "unknown"] = "stop"
    """What becomes of a question that the endpoint did not answer: `stop` refuses the table, `unknown`
    leaves the prediction out."""

    @property
    def sampling(self) -> dict[str, Any]:
        """Which model is asked, and how it samples its answer; part of the digest of every question."""
        return {
            "name": self.model,
            "temperature": self.temperature,
            "max_answer_tokens": self.max_answer_tokens,
        }


class Prices(Record):
    """What an endpoint charges, in US dollars per million tokens."""

    prompt: float = Field(ge=0, allow_inf_nan=False)
    completion: float = Field(ge=0, allow_inf_nan=False)


class ClientSettings(Record):
    """How an endpoint is used; shapes no answer."""

    endpoint: str
    """Base URL of an OpenAI-compatible API, usually ending in `/v1`; its key is read from OPENAI_API_KEY."""
    concurrency: int = Field(8, ge=1, le=4096)
    """Requests at the same time, at most."""
    timeout_seconds: float = Field(120.0, gt=0, allow_inf_nan=False)
    """Time limit of a request, from sending to the last byte."""
    retries: int = Field(6, ge=0, le=LARGEST_COUNT)
    """How often a request is sent again after a fault of endpoint or network."""
    reasks: int = Field(2, ge=0, le=LARGEST_COUNT)
    """How often a question is asked again after an answer that is malformed or a refusal."""
    unusable_share: float = Field(0.2, ge=0, le=1)
    """The job ends if a larger share of the answers cannot be used, however often they are asked for."""
    patience_seconds: float = Field(600.0, gt=0, allow_inf_nan=False)
    """The job ends if nothing is answered for this long."""
    first_wait_seconds: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Wait before the first retry; doubles with each."""
    prices: Prices | None = None
    budget_usd: float | None = Field(None, gt=0, allow_inf_nan=False)
    """What the answers may cost, including those of earlier jobs that this one uses. A request that was in
    flight when an earlier job was killed is not known, and not counted."""


def check_endpoint(settings: ClientSettings) -> None:
    """Refuse settings that no job can run with.

    Raises:
        CatalogError: If the endpoint is not a plain http(s) URL, or a budget comes without prices.
    """
    try:
        parts = urlsplit(settings.endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise CatalogError(
            f"endpoint {presentable_uri(settings.endpoint)!r} is not a URL; expected one such as "
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
