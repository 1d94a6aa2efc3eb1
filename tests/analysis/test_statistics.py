"""Statistics against SciPy, scikit-learn and simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom, binomtest, entropy, mannwhitneyu, norm, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from robustill.analysis.statistics import (
    agreement,
    average_precision,
    corrected,
    correlation,
    detection,
    format_p,
    holm,
    mean_kl,
    mean_std,
    paired_difference,
    paired_over_seeds,
    paired_over_seeds_and_images,
    rank_above,
    rank_correlation,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (431, 500), (1, 1), (5000, 10_000)])
def test_wilson_interval_equals_scipy(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_stays_in_range():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0


def flags(n: int, only_first: int, only_second: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.zeros(n, bool), np.zeros(n, bool)
    a[:only_first] = True
    b[only_first : only_first + only_second] = True
    both = n // 2
    a[-both:] = b[-both:] = True
    return a, b


def test_paired_difference_tests_the_discordant_pairs():
    result = paired_difference(*flags(500, 40, 15))
    assert (result.only_first, result.only_second, result.num_images) == (40, 15, 500)
    assert result.difference == pytest.approx(25 / 500)
    # McNemar's test, exact, two-sided: twice the smaller tail of a fair coin
    assert result.p_value == pytest.approx(2 * binom.cdf(15, 55, 0.5))
    # Variance of a multinomial difference: (b + c − (b − c)²/n) / n²
    half = 1.96 * math.sqrt(55 - 25**2 / 500) / 500
    assert result.low == pytest.approx(0.05 - half, abs=0.003)
    assert result.high == pytest.approx(0.05 + half, abs=0.003)
    assert result.significant
    assert "first is better (+5.0 points on 500 images" in result.sentence


def test_paired_difference_names_the_second_when_it_is_better():
    a, b = flags(500, 40, 15)
    result = paired_difference(b, a)
    assert result.difference == pytest.approx(-0.05)
    assert result.sentence.startswith("The second is better (−5.0 points")


def test_a_difference_within_noise_is_not_significant():
    result = paired_difference(*flags(500, 24, 20))
    assert not result.significant
    assert result.sentence.startswith("The difference cannot be told from noise")


def test_the_same_flags_do_not_differ():
    a, _ = flags(20, 3, 2)
    result = paired_difference(a, a)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    assert not result.significant


def test_bootstrap_repeats_with_its_seed():
    a, b = flags(300, 20, 9)
    assert paired_difference(a, b, seed=3) == paired_difference(a, b, seed=3)


def test_mean_std():
    assert mean_std([1.0, 2.0, 3.0]) == (2.0, 1.0, 3)
    mean, std, n = mean_std([0.5])
    assert (mean, n) == (0.5, 1)
    assert math.isnan(std)


def test_format_p():
    assert [format_p(p) for p in (0.2, 0.0312, 1e-9)] == ["= 0.2", "= 0.031", "< 0.001"]


def test_agreement_counts_equal_predictions():
    assert agreement(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.6, 0.4], [0.8, 0.2]])) == 0.5


def test_mean_kl_equals_scipy_and_accepts_zeros():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(7), (2, 60))
    assert mean_kl(p, q) == pytest.approx(entropy(p, q, axis=1).mean())
    assert mean_kl(p, p) == 0
    assert mean_kl(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])) == pytest.approx(-math.log(2) + 63 * math.log(2))


def test_rank_correlation_equals_scipy_with_ties_and_gaps():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 80).astype(float)
    b = a + rng.normal(size=80)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    b[::7] = np.nan
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b, nan_policy="omit").statistic)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def test_the_interval_of_a_rank_correlation_covers_the_truth():
    rng = np.random.default_rng(0)
    # Of the ranks of normal values with correlation r, the correlation is 6/π·asin(r/2).
    truth = 6 / math.pi * math.asin(0.6 / 2)
    covered = 0
    for _ in range(1000):
        a = rng.normal(size=60)
        result = correlation(a, 0.6 * a + 0.8 * rng.normal(size=60))
        assert result.low < result.rho < result.high
        covered += result.low <= truth <= result.high
    # Binomial(1000, 0.95): 950 ± 7.
    assert 920 <= covered <= 980


def test_the_interval_of_a_rank_correlation_at_its_ends():
    up = np.arange(9.0)
    assert (correlation(up, up).low, correlation(up, -up).high) == (1, -1)
    few = correlation(np.array([1.0, 2.0, np.nan, 4.0]), np.array([2.0, 1.0, 0.0, 5.0]))
    assert few.num_samples == 3
    assert math.isnan(few.low)
    assert math.isnan(correlation(up[:0], up[:0]).rho)


def test_rank_above_equals_mann_whitney():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40), rng.integers(2, 11, 30)
    assert rank_above(a, b) == pytest.approx(mannwhitneyu(a, b).statistic / (40 * 30))


@pytest.mark.parametrize("levels", [3, 1000])
def test_detection_equals_scikit_learn_with_ties(levels: int) -> None:
    draws = np.random.default_rng(0)
    flagged = draws.random(300) < 0.2
    score = (draws.integers(0, levels, 300) + 0.3 * levels * flagged).round()
    result = detection(score, flagged)
    assert result.auroc == pytest.approx(roc_auc_score(flagged, score))
    assert result.average_precision == pytest.approx(average_precision_score(flagged, score))
    assert average_precision(score, flagged) == result.average_precision
    assert (result.num_flagged, result.num_samples) == (flagged.sum(), 300)
    assert 0 <= result.low < result.auroc < result.high <= 1


def test_the_interval_of_the_auroc_covers_the_truth() -> None:
    draws = np.random.default_rng(0)
    flagged = np.arange(120) < 30
    truth = norm.cdf(1 / math.sqrt(2))
    result = [detection(draws.normal(size=120) + flagged, flagged) for _ in range(1000)]
    # Binomial(1000, 0.95): 950 ± 7; the interval is an approximation.
    assert 920 <= sum(each.low <= truth <= each.high for each in result) <= 975


def test_detection_without_both_kinds_of_image_is_nan() -> None:
    score = np.array([1.0, np.nan, 3.0])
    assert math.isnan(detection(score, np.zeros(3, bool)).auroc)
    assert math.isnan(detection(score, np.array([True, False, True])).average_precision)
    assert detection(score, np.array([True, True, False])).num_samples == 2
    assert detection(np.array([-np.inf, 0, np.inf]), np.array([False, False, True])).auroc == 1


def test_the_interval_over_seeds_equals_that_of_scipy() -> None:
    draws = np.random.default_rng(0)
    first, second = draws.random(5), draws.random(5)
    found, expected = paired_over_seeds(first.tolist(), second.tolist()), stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx((first - second).mean())
    assert found.std == pytest.approx(np.std(first - second, ddof=1))


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], "better"),
        ([0.4, 0.5, 0.6], [0.5, 0.6, 0.7], "worse"),
        ([0.5, 0.6, 0.7], [0.7, 0.6, 0.5], "noise"),
        ([0.5, 0.6], [0.3, 0.4], "two seeds"),
        ([0.5], [0.1], "one seed"),
    ],
)
def test_the_verdict_of_a_difference(first: list[float], second: list[float], word: str) -> None:
    assert paired_over_seeds(first, second).verdict == word


def test_images_that_do_not_matter_leave_the_interval_over_seeds() -> None:
    # Every image has the same row of gaps over seeds, so that only seeds vary.
    first = np.repeat([[True], [True], [False], [True]], 50, axis=1)
    second = np.zeros_like(first)
    found, expected = paired_over_seeds_and_images(first, second), paired_over_seeds([1.0, 1, 0, 1], [0.0] * 4)
    assert found == expected


def test_seeds_that_do_not_matter_leave_the_interval_over_images() -> None:
    gaps = np.random.default_rng(0).random(300) < 0.3
    first = np.repeat(gaps[None], 3, axis=0)
    found = paired_over_seeds_and_images(first, np.zeros_like(first))
    expected = stats.ttest_1samp(gaps.astype(float), 0.0)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_seeds_that_are_equal_by_chance_leave_the_interval_over_images() -> None:
    # In each of three seeds another 30 of 300 images are gained: the mean over seeds is .3 on 90 images, 0 on others.
    first = np.arange(300) // 30 == np.arange(3)[:, None]
    found = paired_over_seeds_and_images(first, np.zeros_like(first))
    expected = stats.ttest_1samp(first.mean(axis=0), 0.0).confidence_interval(0.95)
    assert (found.mean, found.std) == (pytest.approx(0.1), pytest.approx(0.0))
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize(("spread_of_seeds", "spread_of_images"), [(0.0, 0.3), (0.06, 0.0), (0.04, 0.2)])
def test_the_interval_over_seeds_and_images_covers_the_truth(spread_of_seeds: float, spread_of_images: float) -> None:
    draws = np.random.default_rng(2)
    hits, over_seeds = [], []
    for _ in range(400):
        own = 0.5 + draws.normal(0, spread_of_seeds, (6, 1)) + draws.normal(0, spread_of_images, (1, 150))
        first, second = draws.random((6, 150)) < own, draws.random((6, 150)) < 0.5
        found = paired_over_seeds_and_images(first, second)
        hits.append(found.low <= 0 <= found.high)
        alone = paired_over_seeds(first.mean(axis=1).tolist(), second.mean(axis=1).tolist())
        over_seeds.append(alone.low <= 0 <= alone.high)
    assert 0.92 <= np.mean(hits) <= 0.98
    if not spread_of_seeds:
        # The seeds share their images, so that their spread does not show what other images would change.
        assert np.mean(over_seeds) < 0.9


def test_a_family_is_corrected_without_what_gets_no_verdict() -> None:
    draws = np.random.default_rng(0)
    family = [paired_over_seeds(draws.random(4).tolist(), (draws.random(4) - 1).tolist()) for _ in range(2)]
    two_seeds = paired_over_seeds([0.5, 0.6], [0.1, 0.1])
    found = corrected([family[0], two_seeds, family[1]])
    small, large = sorted(each.p_value for each in family)
    assert sorted([found[0].p_value, found[2].p_value]) == [2 * small, max(2 * small, large)]
    assert found[1] == two_seeds
    assert (found[0].low, found[0].high) == (family[0].low, family[0].high)
    assert corrected([]) == []


def test_a_difference_that_is_the_same_for_all_seeds_is_certain_and_none_is_not() -> None:
    assert paired_over_seeds([0.3] * 3, [0.1] * 3).p_value == 0
    assert paired_over_seeds([0.1] * 3, [0.1] * 3).p_value == 1


def test_holm_multiplies_each_p_value_by_the_number_of_those_not_yet_decided() -> None:
    # Sorted: 0.01·4, 0.02·3, 0.03·2, then 0.5·1; none is smaller than the one before.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.3, math.nan, 0.2]) == pytest.approx([0.4, math.nan, 0.4], nan_ok=True)


def test_holm_rarely_finds_anything_where_there_is_nothing() -> None:
    uniform = np.random.default_rng(0).uniform(size=(2000, 20))
    false = np.mean([min(holm(list(family))) < 0.05 for family in uniform])
    assert 0.035 < false < 0.065
