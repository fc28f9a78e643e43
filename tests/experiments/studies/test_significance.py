import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.studies.significance import (
    Difference,
    SignificanceError,
    bootstrap_over_queries,
    holm,
    paired_over_seeds,
    split_variance,
    summarise,
)
from tests.tolerances import EXACT_FLOAT64

TRIALS = 400
"""Simulated tables; at a true rate of 5 % between 10 and 34 rejections come out 99 times in 100."""


def by_seed(values) -> dict[int, float]:
    return dict(enumerate(values))


def close(value):
    return pytest.approx(value, abs=EXACT_FLOAT64)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_summary_over_seeds_equals_scipys(count, confidence):
    values = np.random.default_rng(count).normal(66, 2, count)
    summary = summarise(values.tolist(), confidence)
    assert (summary.mean, summary.std, summary.seeds) == (
        close(values.mean()),
        close(np.std(values, ddof=1)),
        count,
    )
    expected = stats.t.interval(confidence, count - 1, values.mean(), stats.sem(values))
    assert summary.interval == close(expected)


def test_interval_of_three_seeds_uses_t_as_tables_print_it():
    # t(0.975, 2) = 4.3027, as printed in any table; std 1, n 3.
    assert summarise([65, 66, 67]).interval == pytest.approx(
        (66 - 4.3027 / 3**0.5, 66 + 4.3027 / 3**0.5), abs=1e-4
    )


def test_one_seed_has_a_mean_and_no_spread():
    summary = summarise([66.5])
    assert (summary.mean, summary.std, summary.interval, summary.seeds) == (66.5, None, None, 1)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_paired_difference_over_seeds_equals_scipys(count):
    random = np.random.default_rng(count)
    reference = random.normal(60, 5, count)
    row = reference + random.normal(2, 1, count)
    found = paired_over_seeds(by_seed(row), by_seed(reference))
    expected = stats.ttest_rel(row, reference)
    assert found.p_value == close(expected.pvalue)
    assert found.interval == close(tuple(expected.confidence_interval(0.95)))
    assert found.difference == close((row - reference).mean())
    assert found.units == count


def test_values_are_paired_by_seed_not_by_position():
    found = paired_over_seeds({1: 10.0, 2: 20.0, 3: 30.5}, {3: 29.0, 1: 9.0, 2: 18.0})
    assert found.p_value == close(stats.ttest_rel([10, 20, 30.5], [9, 18, 29]).pvalue)


def test_a_difference_of_one_seed_has_no_p_value():
    assert paired_over_seeds({1: 66.0}, {1: 64.0}) == Difference(2.0, None, None, 1)


def test_equal_rows_do_not_differ_and_a_constant_gain_does():
    row = {1: 60.0, 2: 61.0, 3: 64.5}
    assert paired_over_seeds(row, row).p_value == 1
    constant = paired_over_seeds({seed: value + 0.5 for seed, value in row.items()}, row)
    assert (constant.difference, constant.interval, constant.p_value) == (0.5, (0.5, 0.5), 0)


def average_precision(
    random, seeds: int, identity: np.ndarray, gain: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Two rows whose queries are hard or easy alike, and whose difference has a part per identity."""
    hard = random.uniform(0, 1, len(identity))
    shared = random.normal(0, 0.1, identity.max() + 1)[identity]
    noise = random.normal(0, 0.1, (2, seeds, len(identity)))
    return hard + shared + gain + noise[0], hard + noise[1]


def test_bootstrap_equals_a_naive_loop():
    random = np.random.default_rng(0)
    identity = random.integers(0, 12, 60)
    row, reference = average_precision(random, 3, identity, 0.03)
    row[:, 5] = reference[:, 5] = np.nan
    found = bootstrap_over_queries(row, reference, identity, resamples=4000)
    gain = row.mean(axis=0) - reference.mean(axis=0)
    by_identity = [[gain[q] for q in range(60) if identity[q] == i and q != 5] for i in range(12)]
    means = []
    for _ in range(4000):
        resample = [value for i in random.integers(0, 12, 12) for value in by_identity[i]]
        means.append(sum(resample) / len(resample))
    n = 12
    tail = stats.norm.cdf((n / (n - 1)) ** 0.5 * stats.t.ppf(0.025, n - 1))
    assert found.difference == close(np.mean([value for part in by_identity for value in part]))
    assert found.units == n
    # Two sets of random resamples: their quantiles agree to about a twentieth of the interval.
    expected = np.quantile(means, [tail, 1 - tail])
    assert found.interval == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))


def test_p_value_of_few_units_equals_that_of_all_their_resamples():
    gain = np.array([0.30, -0.05, 0.02, 0.15, -0.12, 0.10])
    means = gain[np.array(list(itertools.product(range(6), repeat=6)))].mean(axis=1)
    share = np.mean(means <= 0)
    expected = 2 * stats.t.cdf(stats.norm.ppf(share) * (5 / 6) ** 0.5, 5)
    found = bootstrap_over_queries(gain, np.zeros(6), resamples=100_000)
    assert found.p_value == pytest.approx(expected, abs=0.01)
    assert expected > 2 * share + 0.03, "few units say less than their resamples seem to"


def test_bootstrap_interval_of_many_queries_is_the_normal_one():
    random = np.random.default_rng(1)
    row, reference = random.uniform(0, 1, (2, 2000))
    found = bootstrap_over_queries(row, reference)
    expected = stats.ttest_rel(row, reference)
    low, high = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high), abs=0.05 * (high - low))
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)


@pytest.mark.parametrize("gain", [0.0, 0.005, 0.01, 0.015, 0.02, 0.05])
def test_p_value_and_interval_agree(gain):
    random = np.random.default_rng(2)
    identity = np.repeat(np.arange(30), 4)
    for confidence in (0.9, 0.95, 0.99):
        found = bootstrap_over_queries(*average_precision(random, 2, identity, gain), identity, confidence)
        assert found.interval[0] < found.difference < found.interval[1]
        if abs(found.p_value - (1 - confidence)) > 0.002:
            assert (found.p_value < 1 - confidence) == (found.interval[0] > 0 or found.interval[1] < 0)


def test_same_seed_gives_the_same_bootstrap_and_another_seed_another():
    random = np.random.default_rng(3)
    rows = average_precision(random, 2, np.arange(50))
    assert bootstrap_over_queries(*rows, seed=5) == bootstrap_over_queries(*rows, seed=5)
    assert bootstrap_over_queries(*rows, seed=5) != bootstrap_over_queries(*rows, seed=6)


def test_equal_rows_have_no_difference_over_queries():
    row = np.random.default_rng(4).uniform(0, 1, (2, 40))
    found = bootstrap_over_queries(row, row)
    assert (found.difference, found.interval, found.p_value) == (0, (0, 0), 1)


def test_bootstrap_p_value_is_never_zero():
    row = np.random.default_rng(5).uniform(0.5, 1, 40)
    assert 0 < bootstrap_over_queries(row, row - 0.4).p_value < 0.001


def test_one_identity_alone_has_no_p_value():
    found = bootstrap_over_queries(np.array([0.5, 0.7]), np.array([0.4, 0.4]), np.array([7, 7]))
    assert found == Difference(pytest.approx(0.2), None, None, 1)


def rejections(gain: float, clustered: bool) -> int:
    random = np.random.default_rng(6)
    identity = np.repeat(np.arange(40), 4)
    return sum(
        bootstrap_over_queries(
            *average_precision(random, 2, identity, gain), identity if clustered else None, resamples=1000
        ).p_value
        < 0.05
        for _ in range(TRIALS)
    )


def test_false_positive_rate_over_identities_is_five_percent():
    assert 10 <= rejections(0.0, clustered=True) <= 34


def test_resampling_single_queries_gives_too_many_false_positives():
    assert rejections(0.0, clustered=False) > 60


def test_gain_larger_than_the_spread_of_identities_is_found():
    assert rejections(0.08, clustered=True) > 0.95 * TRIALS


def test_false_positive_rate_over_seeds_is_five_percent():
    random = np.random.default_rng(7)
    values = random.normal(60, 1, (TRIALS, 2, 3))
    count = sum(paired_over_seeds(by_seed(a), by_seed(b)).p_value < 0.05 for a, b in values)
    assert 10 <= count <= 34


def test_holm_gives_the_values_of_a_worked_example():
    # In ascending order: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == close([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_rejects_what_its_stepwise_rule_rejects():
    random = np.random.default_rng(8)
    for _ in range(200):
        p_values = random.uniform(0, 1, 6) ** 3
        rejected: set[int] = set()
        for step, i in enumerate(np.argsort(p_values)):
            if p_values[i] > 0.05 / (6 - step):
                break
            rejected.add(int(i))
        assert {i for i, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def rows_with(random, seeds: int, shots: int, spread=(0.03, 0.05, 0.02)) -> tuple[np.ndarray, ...]:
    """Two rows whose difference varies by seed, by identity and by both, and the identity of each query."""
    identity = np.repeat(np.arange(16), shots)
    by_seed, by_identity, noise = spread
    gain = random.normal(0, by_seed, (seeds, 1)) + random.normal(0, by_identity, 16)
    gain = gain + random.normal(0, noise, (seeds, 16))
    reference = random.uniform(0, 1, (seeds, len(identity)))
    return reference + gain[:, identity], reference, identity


def test_variances_are_those_of_a_two_way_analysis_of_variance():
    row, reference, identity = rows_with(np.random.default_rng(10), 4, 3)
    table = [[float((row - reference)[s][identity == i].mean()) for i in range(16)] for s in range(4)]
    total = sum(map(sum, table)) / 64
    seed_means = [sum(line) / 16 for line in table]
    identity_means = [sum(line[i] for line in table) / 4 for i in range(16)]
    residual = sum(
        (table[s][i] - seed_means[s] - identity_means[i] + total) ** 2 for s in range(4) for i in range(16)
    )
    of_identities = 4 * sum((mean - total) ** 2 for mean in identity_means) / 15
    found = split_variance(row, reference, identity)
    assert found.noise == close(residual / (3 * 15))
    assert found.identities == close((of_identities - residual / 45) / 4)
    assert found.seeds == close(np.var(seed_means, ddof=1))
    assert found.identity_count == 16


def test_variances_are_on_average_those_that_were_simulated():
    random = np.random.default_rng(11)
    found = [split_variance(*rows_with(random, 3, 2)) for _ in range(TRIALS)]
    assert np.mean([one.identities for one in found]) == pytest.approx(0.05**2, rel=0.1)
    assert np.mean([one.noise for one in found]) == pytest.approx(0.02**2, rel=0.1)
    # The mean over 16 identities keeps a sixteenth of the noise.
    assert np.mean([one.seeds for one in found]) == pytest.approx(0.03**2 + 0.02**2 / 16, rel=0.15)


def test_queries_without_a_match_have_no_part_in_the_variances():
    row, reference, identity = rows_with(np.random.default_rng(12), 3, 2)
    kept = np.arange(len(identity)) != 5
    expected = split_variance(row[:, kept], reference[:, kept], identity[kept])
    row[:, 5] = reference[:, 5] = np.nan
    assert split_variance(row, reference, identity) == expected


@pytest.mark.parametrize(("seeds", "identity"), [(1, np.arange(6)), (3, np.zeros(6, dtype=int))])
def test_one_seed_or_one_identity_has_no_variances(seeds, identity):
    row = np.random.default_rng(13).uniform(0, 1, (seeds, 6))
    assert split_variance(row, row / 2, identity) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarise([]), r"values \[\]: expected at least one number"),
        (lambda: summarise([1.0, float("nan")]), "values .*finite"),
        (lambda: summarise([1.0, 2.0], confidence=95), "confidence=95: expected a fraction"),
        (lambda: paired_over_seeds({1: 1.0}, {2: 1.0}), r"row has seeds \[1\] and reference seeds \[2\]"),
        (lambda: paired_over_seeds({}, {}), "row .*at least one number"),
        (lambda: paired_over_seeds({1: 1.0}, {1: float("inf")}), "reference .*finite"),
        (
            lambda: bootstrap_over_queries(np.ones(3), np.ones(4)),
            r"row has shape \(3,\) and reference \(4,\)",
        ),
        (
            lambda: bootstrap_over_queries(np.array([1, np.nan]), np.array([np.nan, 1])),
            "reference: queries without a match are not those of row's first seed",
        ),
        (lambda: bootstrap_over_queries(np.full(3, np.nan), np.full(3, np.nan)), "no query has a match"),
        (
            lambda: bootstrap_over_queries(np.ones(3), np.ones(3), np.ones(2)),
            r"identity has shape \(2,\); expected \(3,\)",
        ),
        (lambda: holm([0.1, 1.2]), r"p-values \[0\.1, 1\.2\]: expected numbers from 0 to 1"),
    ],
)
def test_values_that_cannot_be_compared_are_refused(call, message):
    with pytest.raises(SignificanceError, match=message):
        call()
