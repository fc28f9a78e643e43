"""Statistics of a captions table."""

from data_catalog.records import Record


class JobStatistics(Record):
    """Statistics of a job that asks a language model."""

    requests: int
    """Requests that were sent."""
    retries: int
    """Requests that were sent again after a fault of endpoint or network."""
    rate_limited: int
    """Requests that a rate limit rejected."""
    reasked: dict[str, int]
    """How often questions were asked again, by reason (`refused`, `malformed`, `cut`, `empty`)."""
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
    """Samples for which nothing was given."""
    empty: int
    """Empty captions; of imported ones, items without words."""
    unknown: dict[str, float | None] | None = None
    """Share of the card's attributes that are not known from each source alone, and after filling
    (`filled`)."""
    unused: int | None = None
    """Predictions without a sample."""
    redactions: dict[str, int] | None = None
    """With `redact`, how often personal text was left out, by its kind."""

    # Of a language model.
    choices: dict[str, int] | None = None
    """How often the model decided on a value (`llm`), the rule did instead (`rules`), or there was only `one`
    value."""
    faults: dict[str, int] | None = None
    """Answers that stayed unusable in part, by kind of fault."""
    models: dict[str, int] | None = None
    """Answers of each model, by the name that the endpoint reports."""
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
    """The first 100 samples or items of each of these counts, by its name."""
