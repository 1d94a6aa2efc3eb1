"""Detection against scikit-learn and SciPy, and its interval against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import entropy, norm
from sklearn.metrics import average_precision_score, roc_auc_score

from robustill.analysis.human_labels import average_precision, detection, vote_entropy


def test_entropy_equals_scipy() -> None:
    counts = np.random.default_rng(0).integers(0, 5, (40, 6)) + np.eye(6, dtype=int)[np.arange(40) % 6]
    np.testing.assert_allclose(vote_entropy(counts), entropy(counts, axis=1), atol=1e-12)
    assert not np.signbit(vote_entropy(np.array([[50, 0]], dtype=np.uint8))[0])


@pytest.mark.parametrize("levels", [3, 1000])
def test_areas_equal_scikit_learn_with_ties(levels: int) -> None:
    draws = np.random.default_rng(0)
    flagged = draws.random(300) < 0.2
    score = (draws.integers(0, levels, 300) + 0.3 * levels * flagged).round()
    found = detection(score, flagged)
    assert found.auroc == pytest.approx(roc_auc_score(flagged, score))
    assert found.average_precision == pytest.approx(average_precision_score(flagged, score))
    assert average_precision(score, flagged) == found.average_precision
    assert (found.found, found.num_samples) == (flagged.sum(), 300)
    assert 0 <= found.low < found.auroc < found.high <= 1


def test_the_interval_covers_the_truth() -> None:
    draws = np.random.default_rng(0)
    flagged = np.arange(120) < 30
    truth = norm.cdf(1 / math.sqrt(2))
    found = [detection(draws.normal(size=120) + flagged, flagged) for _ in range(1000)]
    # Binomial(1000, 0.95): 950 ± 7; the interval is an approximation.
    assert 920 <= sum(each.low <= truth <= each.high for each in found) <= 975


def test_what_cannot_be_told() -> None:
    score = np.array([1.0, np.nan, 3.0])
    assert math.isnan(detection(score, np.zeros(3, bool)).auroc)
    assert math.isnan(detection(score, np.array([True, False, True])).average_precision)
    assert detection(score, np.array([True, True, False])).num_samples == 2
    assert detection(np.array([-np.inf, 0, np.inf]), np.array([False, False, True])).auroc == 1
