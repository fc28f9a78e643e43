"""Statistics of a captions table."""

from data_catalog.records import Record


class JobStatistics(Record):
    """What a job that asks a language model came to."""

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


class CaptionStatistics(Record):
    """Statistics of a `captions` table; what a captioner does not have is None."""

    missing: int
    """Samples about which nothing was given."""
    empty: int
    """Empty captions; of imported ones, items without words."""
    unknown: dict[str, float | None] | None = None
    """Share of the card's attributes that are not known from each source alone, and after filling
    (`filled`)."""
    unused: int | None = None
    """Predictions without a sample."""
    redactions: dict[str, int] | None = None
    """With `redact`, kind of personal text to how many were left out."""

    # Of a language model.
    choices: dict[str, int] | None = None
    """Who decided on a value, to how often: the model (`llm`), the rule in its stead (`rules`), or nobody,
    because there was `one` value."""
    faults: dict[str, int] | None = None
    """Kind of fault to the answers that stayed unusable in part."""
    models: dict[str, int] | None = None
    """Model that answered, as the endpoint reports it, to the number of answers."""
    llm: JobStatistics | None = None

    # Of imported captions.
    captioned: float | None = None
    """Share of the samples with a caption that is not empty."""
    too_long: int | None = None
    """Captions over CLIP's 77 tokens, of which it reads the first 77."""
    absent: int | None = None
    """Items that name no sample."""
    duplicates: int | None = None
    """Items that are repeated word for word."""
    redacted: int | None = None
    """With `redact`, captions from which something was left out."""
    listed: dict[str, list[str]] | None = None
    """Names of these counts to the first 100 samples or items of each."""
