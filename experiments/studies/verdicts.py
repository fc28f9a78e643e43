"""Which differences of an ablation table are real, which are not, and how many seeds would decide the others.

- `real`: p < 0.05 after Holm's correction, in a paired t-test over seeds and in a bootstrap over test
  identities.
- `not real`: not that, and both 95 % intervals exclude a difference of `WORTH` in either direction. The
  interval over seeds says what a second training would give on these test identities, the one over queries
  what these models would give on other identities; a difference that either allows is not excluded.
- `undecided`: neither.

Values are fractions here: 0.01 is one point of mAP.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.studies.significance import LEVEL, Difference, Variances, holm

WORTH = 0.01
"""The smallest difference of mAP that is worth having: one point."""
POWER = 0.8
"""Probability with which the estimated number of seeds decides, by each of the two tests."""
FEWEST_SEEDS = 3
"""Two seeds leave one degree of freedom: their interval is 12.7 standard errors wide to either side."""
MOST_SEEDS = 100
"""The estimate ends here."""
DEFINITION = (
    "'real' means p < 0.05, Holm-corrected, in a paired t-test over seeds and a bootstrap over test "
    "identities; 'not real', that both 95 % intervals exclude a difference of "
    f"{100 * WORTH:g} point of mAP or more; 'undecided', neither."
)
"""For tables, pages and help texts."""

Word = Literal["real", "not real", "undecided"]


@dataclass(frozen=True)
class Comparison:
    """What is known of the difference between a row and its reference.

    Attributes:
        over_seeds: The paired t-test.
        over_queries: The bootstrap of test identities.
        variances: For the number of seeds that would decide; None with one seed or one identity.
    """

    over_seeds: Difference
    over_queries: Difference
    variances: Variances | None = None


@dataclass(frozen=True)
class Verdict:
    """What the tests say of one of several differences.

    Attributes:
        p_value: The larger one of the two tests; None where one of them is not possible.
        adjusted: The same, corrected for the number of differences; None in the same case.
        real: Whether the corrected value is below the level; None in the same case.
        word: In one word.
        seeds_needed: Estimated number of seeds that would decide; None where it is decided, cannot be
            estimated, or no number up to `MOST_SEEDS` would.
        advice: What would decide it; empty where it is decided.
    """

    p_value: float | None
    adjusted: float | None
    real: bool | None
    word: Word
    seeds_needed: int | None = None
    advice: str = ""


def judge(comparisons: Mapping[str, Comparison]) -> dict[str, Verdict]:
    """The verdicts on a table's differences.

    The larger one of the two p-values tests that both hold; Holm's correction covers the differences that
    have one. The intervals are not corrected.

    Args:
        comparisons: Name of a row to its comparison.
    """
    tested = {
        name: max(one.over_seeds.p_value, one.over_queries.p_value)
        for name, one in comparisons.items()
        if one.over_seeds.p_value is not None and one.over_queries.p_value is not None
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    # Holm tests the differences that are not yet real at the level divided by their number.
    left = sum(value >= LEVEL for value in adjusted.values())
    return {
        name: _verdict(one, tested.get(name), adjusted.get(name), LEVEL / max(1, left))
        for name, one in comparisons.items()
    }


def _verdict(one: Comparison, p_value: float | None, adjusted: float | None, level: float) -> Verdict:
    real = None if adjusted is None else adjusted < LEVEL
    if real:
        return Verdict(p_value, adjusted, real, "real")
    if _is_excluded(one.over_seeds) and _is_excluded(one.over_queries):
        return Verdict(p_value, adjusted, real, "not real")
    seeds_needed, advice = _advise(one, level)
    return Verdict(p_value, adjusted, real, "undecided", seeds_needed, advice)


def _is_excluded(found: Difference) -> bool:
    """Whether the interval excludes every difference that is worth having."""
    return found.interval is not None and found.interval[0] > -WORTH and found.interval[1] < WORTH


def _advise(one: Comparison, level: float) -> tuple[int | None, str]:
    """How many seeds would decide, and that in words."""
    seeds = one.over_seeds.units
    too_few = f"{seeds} seed{'s' if seeds > 1 else ''} cannot decide, use {FEWEST_SEEDS} or more"
    if one.over_queries.units == 1:
        return None, "1 test identity cannot decide; more test identities are needed"
    if one.variances is None:
        return None, too_few
    needed, identities_suffice = seeds_needed(one.over_seeds.difference, one.variances, seeds, level)
    if not identities_suffice:
        limit = f"more than {one.variances.identity_count} test identities are needed"
        return (
            None,
            f"{too_few}; also {limit}" if seeds < FEWEST_SEEDS else f"more seeds do not help: {limit}",
        )
    estimate = f"about {needed}" if needed else f"more than {MOST_SEEDS}"
    if seeds < FEWEST_SEEDS:
        return needed, f"{too_few} (estimate: {estimate} seeds)"
    return needed, f"{estimate} seeds would decide"


def seeds_needed(
    difference: float, variances: Variances, seeds: int, level: float = LEVEL
) -> tuple[int | None, bool]:
    """The number of seeds with which both tests would decide, if difference and variances are as measured.

    Args:
        difference: As measured.
        variances: As measured.
        seeds: How many there are; the answer is larger.
        level: Level of a two-sided test that calls the difference real.

    Returns:
        The number, None if no number up to `MOST_SEEDS` would do; and whether the test identities would let
        that many seeds decide.
    """
    counts = np.arange(max(FEWEST_SEEDS, seeds + 1), MOST_SEEDS + 1)
    by_seeds = _power(difference, np.sqrt(variances.seeds / counts), counts, level)
    identities = np.full(len(counts), variances.identity_count)
    spread = np.sqrt((variances.identities + variances.noise / counts) / identities)
    by_queries = _power(difference, spread, identities, level)
    # Real, or not real: both tests have to say the same.
    decided = (np.minimum(by_seeds, by_queries) >= POWER).any(axis=0)
    suffice = bool((by_queries[:, -1] >= POWER).any())
    return (int(counts[decided.argmax()]) if decided.any() else None), suffice


def _power(difference: float, errors: np.ndarray, units: np.ndarray, level: float) -> np.ndarray:
    """Probability that a t-test calls a difference real, and that its interval excludes what is worth having.

    Both by the noncentral t distribution; the second is the lower bound P(A) + P(B) - 1 for the two ends of
    the interval.

    Args:
        difference: The true one.
        errors: Standard errors, `(cases,)`.
        units: Numbers of seeds or identities, `(cases,)`.
        level: Two-sided, for real.

    Returns:
        `(2, cases)`.
    """
    from scipy import stats  # noqa: PLC0415 - takes half a second, and the records of results do without

    errors = np.maximum(errors, 1e-9)  # not zero where the gain is the same with every seed

    def exceeds(distance: float, tail: float) -> np.ndarray:
        return stats.nct.sf(stats.t.isf(tail, units - 1), units - 1, np.clip(distance / errors, -1e3, 1e3))

    size = abs(difference)
    ends = exceeds(WORTH - size, LEVEL / 2) + exceeds(WORTH + size, LEVEL / 2) - 1
    return np.stack([exceeds(size, level / 2), np.maximum(ends, 0)])
