"""Statistics of an ablation table: spread over seeds, paired differences with their tests, and variances.

One row's mAP may exceed another's by chance for two reasons: the seeds that were trained, and the queries of
the test split. A paired t-test over seeds covers the first, a bootstrap of the difference of average
precision over queries (or identities) the second. `verdicts` combines the two.

Values may be fractions or percent: results have the unit of the arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
"""Probability to call any difference of a table real where there is none."""
RESAMPLES = 10_000
BLOCK_ELEMENTS = 4 * 2**20
"""Number of resampled units in memory at a time."""


class SignificanceError(ValueError):
    """Values that cannot be compared."""


@dataclass(frozen=True)
class SeedSummary:
    """The values of one row over its seeds.

    Attributes:
        mean: Mean over seeds.
        std: Standard deviation, with n - 1; None with one seed.
        interval: Confidence interval of the mean; None with one seed.
        seeds: Number of seeds.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """The difference between a row and its reference.

    Attributes:
        difference: Mean of row minus reference; positive where the row is higher.
        interval: Confidence interval of the difference; None with one unit.
        p_value: Two-sided, for no difference; None with one unit.
        units: Number of independent units: seeds, or queries or identities with a match.
    """

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    units: int


@dataclass(frozen=True)
class Variances:
    """What makes a difference of mAP vary, as variances.

    Attributes:
        seeds: Of the difference from one training seed to another.
        identities: Of a test identity's difference, as unlimited seeds would show it.
        noise: Of a test identity's difference from seed to seed, beside what all identities share.
        identity_count: Number of test identities with a match.
    """

    seeds: float
    identities: float
    noise: float
    identity_count: int


def summarise(values: Sequence[float], confidence: float = 0.95) -> SeedSummary:
    """Mean, standard deviation and t-interval over seeds: m +- t(n-1) s / sqrt(n), s with n - 1.

    Raises:
        SignificanceError: There is no value, or one is not finite.
    """
    sample = _finite("values", values)
    found = _t_test(sample, confidence)
    std = None if len(sample) == 1 else float(sample.std(ddof=1)) if np.ptp(sample) else 0.0
    return SeedSummary(found.difference, std, found.interval, found.units)


def paired_over_seeds(row: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Paired t-test over seeds: t = m / (s / sqrt(n)) of the differences, with n - 1 degrees of freedom.

    One seed gives a difference, but neither an interval nor a p-value.

    Args:
        row: Seed to value.
        reference: Seed to value, of the same seeds.

    Raises:
        SignificanceError: The seeds differ, there are none, or a value is not finite.
    """
    if row.keys() != reference.keys():
        raise SignificanceError(
            f"row has seeds {sorted(row)} and reference seeds {sorted(reference)}; a paired difference "
            "needs the same seeds in both: train the missing ones, or leave them out"
        )
    values = [
        _finite(name, [by_seed[seed] for seed in sorted(row)])
        for name, by_seed in (("row", row), ("reference", reference))
    ]
    return _t_test(values[0] - values[1])


def bootstrap_over_queries(
    row: np.ndarray,
    reference: np.ndarray,
    identity: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Paired bootstrap of the difference of mAP: these trained models, other queries.

    Average precision is averaged over seeds, then subtracted for each query; resamples of the queries
    give the distribution of the mean. Queries of one identity are correlated, so with `identity` whole
    identities are resampled; the interval is then wider.

    The percentile interval is too narrow for few units; its tails are therefore taken at
    Phi(-sqrt(n / (n - 1)) t(alpha / 2, n - 1)) in place of alpha / 2, n the number of units (the expanded
    percentile interval of Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). The p-value
    is the alpha at which that interval touches zero, so that the two agree.

    Args:
        row: Average precision `(seeds, queries)` or `(queries,)`; NaN for a query without a match.
        reference: The same for the same queries; it may have other seeds.
        identity: Identity of each query, `(queries,)`; None to resample single queries.
        confidence: Confidence of the interval.
        resamples: Number of resamples.
        seed: Seed of the generator: the same seed gives the same result.

    Raises:
        SignificanceError: Shapes or unmatched queries differ, or no query has a match.
    """
    gain, matched = _gain_by_query(row, reference)
    clusters = np.arange(len(gain)) if identity is None else np.asarray(identity)
    if clusters.shape != gain.shape:
        raise SignificanceError(f"identity has shape {clusters.shape}; expected {gain.shape}, one a query")
    _, cluster = np.unique(clusters[matched], return_inverse=True)
    sums = np.bincount(cluster, gain[matched])
    counts = np.bincount(cluster).astype(float)
    units = len(counts)
    difference = float(sums.sum() / counts.sum())
    if units == 1:
        return Difference(difference, None, None, 1)
    from scipy import stats  # noqa: PLC0415 - takes half a second, and the records of results do without

    means = _resampled_means(sums, counts, resamples, np.random.default_rng(seed))
    tail = float(stats.norm.cdf(_expansion(units) * stats.t.ppf(_tail(confidence), units - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    # One more on either side: no number of resamples can show that the p-value is zero.
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0)) + 1
    z = stats.norm.ppf(beyond / (resamples + 1))
    p_value = min(1.0, 2 * float(stats.t.cdf(z / _expansion(units), units - 1)))
    return Difference(difference, (float(low), float(high)), p_value, units)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: in ascending order p_(i) (m - i + 1), made monotone, at most 1.

    The probability that any true null hypothesis is rejected stays below the level, whatever the
    dependence between the tests (Holm 1979). SciPy has no function for it.

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


def split_variance(row: np.ndarray, reference: np.ndarray, identity: np.ndarray) -> Variances | None:
    """The variances of a difference, by a two-way analysis of variance: seeds by identities.

    An identity's part of the mean over queries is linearised as (s_i - d c_i) I / sum(c), with s_i the sum
    and c_i the number of its queries' differences, d their mean and I the number of identities; where all
    identities have equally many queries, it is the identity's mean difference minus d.

    Args:
        row: Average precision `(seeds, queries)`; NaN for a query without a match.
        reference: The same, of the same queries and seeds in the same order.
        identity: Identity of each query, `(queries,)`.

    Returns:
        None with a single seed or a single identity.

    Raises:
        SignificanceError: As in `bootstrap_over_queries`.
    """
    _, matched = _gain_by_query(row, reference)
    gain = (row - reference)[:, matched]
    _, cluster = np.unique(identity[matched], return_inverse=True)
    counts = np.bincount(cluster)
    seeds, count = len(gain), len(counts)
    if seeds == 1 or count == 1:
        return None
    by_seed = gain.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(cluster, one) for one in gain])
    parts = (sums - by_seed * counts) / counts.mean()
    of_identity = parts.mean(axis=0)
    noise = float(((parts - of_identity) ** 2).sum() / ((seeds - 1) * (count - 1)))
    identities = max(0.0, float(of_identity.var(ddof=1)) - noise / seeds)
    return Variances(float(by_seed.var(ddof=1)), identities, noise, count)


def _tail(confidence: float) -> float:
    """Probability beyond either end of an interval."""
    if not 0 < confidence < 1:
        raise SignificanceError(f"confidence={confidence}: expected a fraction between 0 and 1, as 0.95")
    return (1 - confidence) / 2


def _finite(name: str, values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise SignificanceError(f"{name} {values!r}: expected at least one number, all of them finite")
    return sample


def _t_test(sample: np.ndarray, confidence: float = 0.95) -> Difference:
    """T-test of a mean of zero; without interval and p-value for a single value."""
    mean, count, tail = float(sample.mean()), len(sample), _tail(confidence)
    if count == 1:
        return Difference(mean, None, None, 1)
    if np.ptp(sample) == 0:
        # The limit of the formula: equal rows, or the same gain with every seed.
        return Difference(mean, (mean, mean), 1.0 if mean == 0 else 0.0, count)
    from scipy import stats  # noqa: PLC0415 - as above

    # Not `stats.ttest_1samp`, which warns of values that are equal up to rounding.
    std, root = float(sample.std(ddof=1)), float(np.sqrt(count))
    half = float(stats.t.isf(tail, count - 1)) * std / root
    p_value = float(2 * stats.t.sf(abs(mean / (std / root)), count - 1))
    return Difference(mean, (mean - half, mean + half), p_value, count)


def _gain_by_query(row: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row minus reference, averaged over seeds, and which queries have a match; each `(queries,)`."""
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
    """Factor by which a bootstrap of n units underestimates the standard deviation: sqrt(n / (n - 1))."""
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
        sampled = generator.integers(units, size=(stop - start, units))
        means[start:stop] = sums[sampled].sum(axis=1) / counts[sampled].sum(axis=1)
    return means
