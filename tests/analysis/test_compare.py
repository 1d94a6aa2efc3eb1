import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from robustill.analysis.compare import format_p, mean_std, paired_difference, wilson_interval


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


def test_paired_difference_counts_and_tests_the_discordant_pairs():
    found = paired_difference(*flags(500, 40, 15))
    assert (found.only_first, found.only_second, found.num_images) == (40, 15, 500)
    assert found.difference == pytest.approx(25 / 500)
    # McNemar, exact, two-sided: twice the smaller tail of a fair coin
    assert found.p_value == pytest.approx(2 * binom.cdf(15, 55, 0.5))
    # variance of a multinomial difference: (b + c − (b − c)²/n) / n²
    half = 1.96 * math.sqrt(55 - 25**2 / 500) / 500
    assert found.low == pytest.approx(0.05 - half, abs=0.003)
    assert found.high == pytest.approx(0.05 + half, abs=0.003)
    assert found.significant
    assert "first is better (+5.0 points on 500 images" in found.sentence


def test_paired_difference_names_the_second_when_it_is_better():
    a, b = flags(500, 40, 15)
    found = paired_difference(b, a)
    assert found.difference == pytest.approx(-0.05)
    assert found.sentence.startswith("The second is better (−5.0 points")


def test_a_difference_inside_the_noise_is_no_gain():
    found = paired_difference(*flags(500, 24, 20))
    assert not found.significant
    assert found.sentence.startswith("The difference cannot be told from noise")


def test_the_same_flags_do_not_differ():
    a, _ = flags(20, 3, 2)
    found = paired_difference(a, a)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert not found.significant


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
