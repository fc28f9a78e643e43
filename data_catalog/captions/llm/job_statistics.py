"""Statistics of a captions table that a language model made, and of the job that asked it."""

from data_catalog.records import Record


class JobStatistics(Record):
    """What a job came to."""

    requests: int
    """Requests that were sent."""
    retries: int
    """Requests that were sent again after a fault of endpoint or network."""
    rate_limited: int
    """Requests that a rate limit rejected."""
    reasked: dict[str, int]
    """Why questions were asked again (`refused`, `malformed`, `cut`, `empty`), to how often."""
    answers_kept_from_before: int
    """Answers of earlier jobs that were used."""
    failed: int
    """Questions that stayed unanswered."""
    prompt_tokens: int
    """Tokens sent, those of earlier jobs' answers included."""
    completion_tokens: int
    """Tokens received, likewise."""
    cost_usd: float | None
    """Cost of all answers, with those that were lost on the way; None without prices."""


class LlmCaptionStatistics(Record):
    """What a captions table by a language model has besides `CaptionStatistics`."""

    choices: dict[str, int] | None = None
    """Who decided on a value, to how often: the model (`llm`), the rule in its stead (`rules`), or nobody,
    because there was `one` value."""
    faults: dict[str, int] | None = None
    """Kind of fault to the answers that stayed unusable in part."""
    models: dict[str, int] | None = None
    """Model that answered, as the endpoint reports it, to the number of answers."""
    llm: JobStatistics | None = None
