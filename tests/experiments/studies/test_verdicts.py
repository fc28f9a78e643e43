import numpy as np
import pytest
from scipy import stats

from experiments.studies.significance import (
    Difference,
    Variances,
    bootstrap_over_queries,
    paired_over_seeds,
    split_variance,
)
from experiments.studies.verdicts import POWER, WORTH, Comparison, judge, seeds_needed
from tests.tolerances import EXACT_FLOAT64

WIDE = (-0.05, 0.05)
NARROW = (-0.004, 0.004)
TRIALS = 2000


def found(p_value, interval=WIDE, units=3, difference=0.0) -> Difference:
    return Difference(difference, interval, p_value, units)


def compared(seeds, queries, seeds_interval=WIDE, queries_interval=WIDE) -> Comparison:
    return Comparison(found(seeds, seeds_interval), found(queries, queries_interval, units=40))


def test_difference_is_real_only_if_seeds_and_queries_both_show_it():
    verdicts = judge(
        {
            "both": compared(0.001, 0.01),
            "seeds only": compared(0.001, 0.3),
            "queries only": compared(0.3, 0.001),
        }
    )
    assert {name: (v.real, v.word) for name, v in verdicts.items()} == {
        "both": (True, "real"),
        "seeds only": (False, "undecided"),
        "queries only": (False, "undecided"),
    }
    assert verdicts["both"].p_value == 0.01
    assert verdicts["both"].adjusted == pytest.approx(0.03, abs=EXACT_FLOAT64)
    assert verdicts["both"].advice == ""


def test_difference_is_not_real_only_if_both_intervals_exclude_one_worth_having():
    verdicts = judge(
        {
            "both": compared(0.5, 0.6, NARROW, NARROW),
            "seeds only": compared(0.5, 0.6, NARROW, WIDE),
            "queries only": compared(0.5, 0.6, WIDE, NARROW),
            "loss": compared(0.5, 0.6, NARROW, (-WORTH, 0.0)),
            "gain": compared(0.5, 0.6, (0.0, WORTH), NARROW),
            "small": compared(0.5, 0.6, (-0.0099, 0.002), (0.001, 0.0099)),
        }
    )
    assert {name for name, v in verdicts.items() if v.word == "not real"} == {"both", "small"}
    assert {v.word for v in verdicts.values()} == {"not real", "undecided"}


def test_difference_that_is_certain_is_real_however_small_it_is():
    assert judge({"a": compared(0.001, 0.001, (0.001, 0.003), (0.001, 0.003))})["a"].word == "real"


def test_more_differences_need_smaller_p_values():
    assert judge({"a": compared(0.03, 0.03)})["a"].real
    three = judge({name: compared(0.03, 0.03) for name in "abc"})
    assert not any(verdict.real for verdict in three.values())


def test_difference_without_a_test_is_undecided_and_not_counted():
    verdicts = judge(
        {
            "one seed": Comparison(found(None, None, 1), found(0.001, NARROW, 40)),
            "one identity": Comparison(found(0.001, NARROW), found(None, None, 1)),
            "three": compared(0.04, 0.04),
        }
    )
    assert verdicts["one seed"].real is verdicts["one identity"].real is None
    assert verdicts["one seed"].word == verdicts["one identity"].word == "undecided"
    assert verdicts["one seed"].advice == "1 seed cannot decide, use 3 or more"
    assert verdicts["one identity"].advice == "1 test identity cannot decide; more test identities are needed"
    assert verdicts["three"].real


def test_tables_without_any_gain_have_few_real_differences():
    random = np.random.default_rng(9)
    tables = 300
    wrong = 0
    for p_values in random.uniform(0, 1, (tables, 4, 2)):
        verdicts = judge({str(i): compared(a, b) for i, (a, b) in enumerate(p_values)})
        wrong += any(verdict.real for verdict in verdicts.values())
    assert wrong <= 0.05 * tables


def measured(random, seeds, difference, variances: Variances) -> Comparison:
    """Runs and queries with the given variances; one query of each identity."""
    identities = variances.identity_count
    gain = difference + random.normal(0, variances.seeds**0.5, (seeds, 1))
    gain = gain + random.normal(0, variances.identities**0.5, identities)
    gain = gain + random.normal(0, variances.noise**0.5, (seeds, identities))
    reference = random.uniform(0, 1, (seeds, identities))
    identity = np.arange(identities)
    means = ({s: float(v) for s, v in enumerate(side.mean(axis=1))} for side in (reference + gain, reference))
    return Comparison(
        paired_over_seeds(*means),
        bootstrap_over_queries(reference + gain, reference, identity, resamples=500),
        split_variance(reference + gain, reference, identity),
    )


def test_difference_as_large_as_is_worth_having_is_rarely_called_not_real():
    random = np.random.default_rng(1)
    variances = Variances(0.003**2, 0.01**2, 0.005**2, 60)
    verdicts = [judge({"a": measured(random, 6, WORTH, variances)})["a"] for _ in range(300)]
    assert sum(verdict.word == "not real" for verdict in verdicts) <= 0.05 * 300


def shares_by_simulation(difference, variances: Variances, seeds: int, level: float) -> tuple[float, float]:
    """How often t-tests over seeds and over identities both call the difference real, or exclude it."""
    random = np.random.default_rng(seeds)
    identities = variances.identity_count
    spread = (variances.identities + variances.noise / seeds) ** 0.5
    real, excluded = np.ones(TRIALS, dtype=bool), np.ones(TRIALS, dtype=bool)
    for std, units in ((variances.seeds**0.5, seeds), (spread, identities)):
        tests = stats.ttest_1samp(random.normal(difference, std, (TRIALS, units)), 0, axis=1)
        low, high = tests.confidence_interval(0.95)
        real &= tests.pvalue < level
        excluded &= (low > -WORTH) & (high < WORTH)
    return float(real.mean()), float(excluded.mean())


@pytest.mark.parametrize(
    ("difference", "seed_std", "level", "wanted"),
    [(0.02, 0.02, 0.05, 0), (-0.05, 0.08, 0.05 / 6, 0), (0.0, 0.012, 0.05, 1), (0.003, 0.01, 0.05 / 3, 1)],
)
def test_estimated_seeds_decide_as_often_as_stated_and_fewer_do_not(difference, seed_std, level, wanted):
    # Many identities that hardly vary: the seeds alone decide.
    variances = Variances(seed_std**2, 0.001**2, 0.001**2, 200)
    needed, suffice = seeds_needed(difference, variances, 2, level)
    assert suffice
    assert 3 < needed < 60
    shares = [
        shares_by_simulation(difference, variances, seeds, level)[wanted]
        for seeds in (needed, round(0.7 * needed))
    ]
    assert shares[0] == pytest.approx(POWER, abs=0.08)
    assert shares[0] >= POWER - 0.03
    assert shares[1] < POWER - 0.03


def test_more_seeds_are_advised_where_the_identities_suffice():
    variances = Variances(0.03**2, 0.02**2, 0.05**2, 80)
    needed, _ = seeds_needed(0.03, variances, 3)
    random = np.random.default_rng(2)
    before = [judge({"a": measured(random, 3, 0.03, variances)})["a"].word for _ in range(100)]
    after = [judge({"a": measured(random, needed, 0.03, variances)})["a"].word for _ in range(100)]
    assert before.count("real") < 50
    # Each of the two tests finds it with a probability of 0.8 at least.
    assert after.count("real") >= 65


def test_more_seeds_are_not_advised_where_the_identities_are_the_limit():
    variances = Variances(0.001**2, 0.2**2, 0.01**2, 12)
    assert seeds_needed(0.03, variances, 3) == (None, False)
    real, excluded = shares_by_simulation(0.03, variances, 100, 0.05)
    assert max(real, excluded) < POWER
    verdict = judge({"a": Comparison(found(0.001), found(0.4, units=12), variances)})["a"]
    assert verdict.advice == "more seeds do not help: more than 12 test identities are needed"
    assert verdict.seeds_needed is None


def test_noise_that_seeds_average_away_is_not_taken_for_a_lack_of_identities():
    # Three seeds leave the queries' interval wide, a hundred do not.
    needed, suffice = seeds_needed(0.05, Variances(0.001**2, 0.01**2, 0.4**2, 30), 3)
    assert suffice
    assert 10 < needed <= 100


@pytest.mark.parametrize(
    ("seeds", "difference", "variances", "advice"),
    [
        (2, 0.141, Variances(0.02**2, 0.05**2, 0, 60), "2 seeds cannot decide, use 3 or more"),
        (
            2,
            0.01,
            Variances(0.02**2, 0.5**2, 0, 9),
            "use 3 or more; also more than 9 test identities are needed",
        ),
        (3, 0.02, Variances(0.02**2, 0.01**2, 0, 60), "about 10 seeds would decide"),
        (3, 0.009, Variances(0.1**2, 0.001**2, 0, 60), "more than 100 seeds would decide"),
    ],
)
def test_advice_says_what_would_decide(seeds, difference, variances, advice):
    one = Comparison(found(0.3, units=seeds, difference=difference), found(0.3, units=60), variances)
    assert advice in judge({"a": one})["a"].advice


def test_seeds_that_are_needed_grow_with_the_number_of_undecided_differences():
    one = Comparison(found(0.2, difference=0.05), found(0.2, units=60), Variances(0.04**2, 0, 0, 60))
    alone = judge({"a": one})["a"].seeds_needed
    among = judge(dict.fromkeys("abcdef", one))["a"].seeds_needed
    assert alone < among
    certain = compared(1e-6, 1e-6)
    assert judge({"a": one, "b": certain, "c": certain})["a"].seeds_needed == alone
