"""What an ablation table may claim: spread over seeds, paired differences, and what of them is real.

Two things make one row's mAP beat another's by chance: the seeds that were trained, and the queries that
were asked. The first is judged by a paired t-test over seeds, the second by a bootstrap over queries (or
identities) of the difference of their average precision. A difference is called real where both say so,
after Holm's correction for the number of differences that the table shows.

Values may be fractions or percent: what comes out is in the unit of what goes in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
BLOCK_ELEMENTS = 4 * 2**20
"""Drawn units held at a time."""


class SignificanceError(ValueError):
    """Values that cannot be compared."""


@dataclass(frozen=True)
class SeedSummary:
    """One row of a table over its seeds.

    Attributes:
        mean: Over seeds.
        std: Standard deviation, with n - 1; None with one seed.
        interval: Confidence interval of the mean; None with one seed.
        seeds: How many.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """How much a row beats its reference.

    Attributes:
        difference: Mean of row less reference; positive where the row is higher.
        interval: Confidence interval of the difference; None where there is but one unit.
        p_value: Two-sided, of no difference; None where there is but one unit.
        units: Independent units that it rests on: seeds, or queries or identities with a match.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    units: int


@dataclass(frozen=True)
class Verdict:
    """What may be said of one difference among several.

    Attributes:
        p_value: The larger of the two tests; None where either could not be made.
        adjusted: The same, corrected for the number of differences; None likewise.
        real: Whether the corrected value is below the level; None where that cannot be said.
    """

    p_value: float | None
    adjusted: float | None
    real: bool | None


def summarise(values: Sequence[float], confidence: float = 0.95) -> SeedSummary:
    """Mean, standard deviation and t-interval over seeds: m +- t(n-1) s / sqrt(n), s with n - 1.

    Raises:
        SignificanceError: There is no value, or one is not finite.
    """
    sample = _finite("values", values)
    mean, std, interval = _t_interval(sample, confidence)
    return SeedSummary(mean, std, interval, len(sample))


def paired_over_seeds(
    row: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Difference:
    """Paired t-test over seeds: t = m / (s / sqrt(n)) of the differences, with n - 1 degrees of freedom.

    With one seed there is a difference, but neither interval nor p-value.

    Args:
        row: Seed to value.
        reference: Seed to value, of the same seeds.
        confidence: Of the interval.

    Raises:
        SignificanceError: The seeds differ, there are none, or a value is not finite.
    """
    if row.keys() != reference.keys():
        raise SignificanceError(
            f"row has seeds {sorted(row)} and reference seeds {sorted(reference)}; a paired difference "
            "needs the same seeds in both: train the missing ones, or leave them out"
        )
    seeds = sorted(row)
    differences = _finite("row", [row[s] for s in seeds]) - _finite(
        "reference", [reference[s] for s in seeds]
    )
    mean, std, interval = _t_interval(differences, confidence)
    if std is None:
        return Difference(mean, None, None, 1)
    if std == 0:
        # The limit of the formula: equal rows, or one and the same gain with every seed.
        return Difference(mean, interval, 1.0 if mean == 0 else 0.0, len(seeds))
    t = mean / (std / np.sqrt(len(seeds)))
    return Difference(mean, interval, float(2 * stats.t.sf(abs(t), len(seeds) - 1)), len(seeds))


def bootstrap_over_queries(
    row: np.ndarray,
    reference: np.ndarray,
    identity: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Paired bootstrap of the difference of mAP, for these trained models and other queries.

    Average precision is averaged over seeds, then subtracted query by query; resamples of the queries
    give the distribution of the mean. Queries of one identity are alike, so with `identity` whole
    identities are resampled, which is more honest: the interval is then wider.

    The percentile interval is too narrow for few units; its tails are therefore taken at
    Phi(-sqrt(n / (n - 1)) t(alpha / 2, n - 1)) in place of alpha / 2, n the number of units (the expanded
    percentile interval of Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). The p-value
    is the alpha at which that interval touches zero, so the two agree.

    Args:
        row: Average precision `(seeds, queries)` or `(queries,)`; NaN for a query without a match.
        reference: The same of the same queries; it may have other seeds.
        identity: Of each query, `(queries,)`; None to resample single queries.
        confidence: Of the interval.
        resamples: How many.
        seed: Of the generator: the same seed, the same result.

    Raises:
        SignificanceError: Shapes or unmatched queries differ, or no query has a match.
    """
    gain, kept = _gain_by_query(row, reference)
    clusters = np.arange(len(gain)) if identity is None else np.asarray(identity)
    if clusters.shape != gain.shape:
        raise SignificanceError(f"identity has shape {clusters.shape}; expected {gain.shape}, one a query")
    _, cluster = np.unique(clusters[kept], return_inverse=True)
    sums = np.bincount(cluster, gain[kept])
    counts = np.bincount(cluster).astype(float)
    units = len(counts)
    difference = float(sums.sum() / counts.sum())
    if units == 1:
        return Difference(difference, None, None, 1)
    means = _resampled_means(sums, counts, resamples, np.random.default_rng(seed))
    tail = float(stats.norm.cdf(_expansion(units) * stats.t.ppf(_tail(confidence), units - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    # One is added on either side: no number of resamples makes a p-value of zero.
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0)) + 1
    z = stats.norm.ppf(beyond / (resamples + 1))
    p_value = min(1.0, 2 * float(stats.t.cdf(z / _expansion(units), units - 1)))
    return Difference(difference, (float(low), float(high)), p_value, units)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: in ascending order p_(i) (m - i + 1), made monotone, at most 1.

    The chance that any of the true null hypotheses is rejected stays below the level, whatever the
    dependence between the tests (Holm 1979).

    Raises:
        SignificanceError: A value is not between 0 and 1.
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise SignificanceError(f"p-values {list(p_values)}: expected numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def judge(
    differences: Mapping[str, tuple[Difference, Difference]], level: float = 0.05
) -> dict[str, Verdict]:
    """Which of a table's differences are real: over seeds AND over queries, corrected for their number.

    The larger of the two p-values tests that both hold; Holm's correction runs over the differences
    that have one.

    Args:
        differences: Name to the difference over seeds and the one over queries.
        level: Chance to call any difference real where there is none.
    """
    larger = {
        name: None
        if seeds.p_value is None or queries.p_value is None
        else max(seeds.p_value, queries.p_value)
        for name, (seeds, queries) in differences.items()
    }
    tested = {name: p for name, p in larger.items() if p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {
        name: Verdict(p, adjusted[name], adjusted[name] < level)
        if p is not None
        else Verdict(None, None, None)
        for name, p in larger.items()
    }


def _tail(confidence: float) -> float:
    """Chance beyond either end of an interval."""
    if not 0 < confidence < 1:
        raise SignificanceError(f"confidence={confidence}: expected a fraction between 0 and 1, as 0.95")
    return (1 - confidence) / 2


def _finite(name: str, values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise SignificanceError(f"{name} {values!r}: expected at least one number, all of them finite")
    return sample


def _t_interval(
    sample: np.ndarray, confidence: float
) -> tuple[float, float | None, tuple[float, float] | None]:
    """Mean, standard deviation and interval; the latter two are None for a single value."""
    mean, count, tail = float(sample.mean()), len(sample), _tail(confidence)
    if count == 1:
        return mean, None, None
    # Equal values have no spread; their rounded mean would give them one.
    std = 0.0 if np.ptp(sample) == 0 else float(sample.std(ddof=1))
    half = float(stats.t.isf(tail, count - 1)) * std / np.sqrt(count)
    return mean, std, (float(mean - half), float(mean + half))


def _gain_by_query(row: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row less reference, averaged over seeds, and which queries have a match; each `(queries,)`."""
    first, second = np.atleast_2d(row), np.atleast_2d(reference)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise SignificanceError(
            f"row has shape {np.shape(row)} and reference {np.shape(reference)}; expected (seeds, queries) "
            "of the same queries"
        )
    unmatched = np.isnan(first[0])
    for name, values in (("row", first), ("reference", second)):
        if (np.isnan(values) != unmatched).any():
            raise SignificanceError(
                f"{name}: queries without a match are not those of row's first seed; average precisions "
                "can be compared only of the same queries, in the same order"
            )
    if unmatched.all():
        raise SignificanceError("no query has a match in the gallery")
    return first.mean(axis=0) - second.mean(axis=0), ~unmatched


def _expansion(units: int) -> float:
    """By how much a bootstrap of n units falls short in standard deviation: sqrt(n / (n - 1))."""
    return float(np.sqrt(units / (units - 1)))


def _resampled_means(
    sums: np.ndarray, counts: np.ndarray, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Means over queries of resamples of the units, from each unit's sum and count; `(resamples,)`."""
    units = len(sums)
    means = np.empty(resamples)
    block = max(1, BLOCK_ELEMENTS // units)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        drawn = generator.integers(units, size=(stop - start, units))
        means[start:stop] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means
