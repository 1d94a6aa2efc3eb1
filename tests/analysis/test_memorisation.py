"""Memorisation compared with its formula in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robustill.analysis.memorisation import mean_by_partition, memorisation


def written_out(right: np.ndarray, trained: np.ndarray) -> list[tuple[float, float]]:
    """mem(i) and its standard error, in plain loops."""
    result = []
    for i in range(right.shape[1]):
        having = [int(right[k, i]) for k in range(len(right)) if trained[k, i]]
        lacking = [int(right[k, i]) for k in range(len(right)) if not trained[k, i]]
        score = sum(having) / len(having) - sum(lacking) / len(lacking)
        # A sample variance, of the mean of as many.
        variance = sum(np.var(each, ddof=1) / len(each) for each in (having, lacking))
        result.append((score, math.sqrt(variance)))
    return result


def test_memorisation_equals_its_formula() -> None:
    draws = np.random.default_rng(0)
    trained = draws.random((12, 30)) < 0.7
    trained[:2], trained[2:4] = True, False
    right = draws.random((12, 30)) < np.where(trained, 0.8, 0.4)
    expected = np.array(written_out(right, trained))
    result = memorisation(right, trained)
    np.testing.assert_allclose(result.score, expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(result.standard_error, expected[:, 1], atol=1e-12)
    np.testing.assert_allclose(result.trained - result.left_out, result.score)


def test_an_image_never_left_out_has_no_score() -> None:
    right, trained = np.ones((3, 2), bool), np.array([[True, True], [True, True], [True, False]])
    result = memorisation(right, trained)
    assert np.isnan(result.score[0])
    assert result.score[1] == 0
    # Of one training alone there is no spread.
    assert np.isnan(result.standard_error).all()


def test_the_standard_error_covers_the_truth() -> None:
    draws = np.random.default_rng(1)
    trained = np.tile(np.arange(30)[:, None] % 3 > 0, (1, 4000))
    result = memorisation(draws.random((30, 4000)) < np.where(trained, 0.7, 0.5), trained)
    assert result.score.mean() == pytest.approx(0.2, abs=0.01)
    assert np.sqrt(np.mean(result.standard_error**2)) == pytest.approx(result.score.std(), rel=0.05)


def test_each_partition_has_its_own_mean() -> None:
    folds = np.array([0, 0, 1, 1, 2, 2])
    trained = np.array([folds != fold for fold in (0, 1, 2, 0, 1)])
    right = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], [1] * 6, [0] * 6, [1] * 6], dtype=bool)
    every, some = np.ones(6, bool), np.array([True, True, False, False, False, False])
    # In the first partition image 1 is right in one of two trainings and when it is left out; 2 is wrong left out.
    expected = [1 - 1, 1 / 2 - 1, 1 - 0, 1 - 1, 0, 0]
    assert mean_by_partition(right, trained, np.array([0, 0, 0, 1, 1]), every) == {0: pytest.approx(np.mean(expected))}
    assert mean_by_partition(right, trained, np.array([0, 0, 0, 1, 1]), some) == {0: pytest.approx(-1 / 4)}
    assert mean_by_partition(right, trained, np.array([0, 0, 0, 1, 1]), ~every) == {}
