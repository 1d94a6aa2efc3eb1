"""Memorisation against its formula, written out image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robustill.analysis.memorisation import mean_by_partition, memorisation


def written_out(right: np.ndarray, trained: np.ndarray) -> list[tuple[float, float]]:
    """mem(i) and its standard error, in plain loops."""
    found = []
    for i in range(right.shape[1]):
        having = [int(right[k, i]) for k in range(len(right)) if trained[k, i]]
        lacking = [int(right[k, i]) for k in range(len(right)) if not trained[k, i]]
        score = sum(having) / len(having) - sum(lacking) / len(lacking)
        # A sample variance, of the mean of as many.
        variance = sum(np.var(each, ddof=1) / len(each) for each in (having, lacking))
        found.append((score, math.sqrt(variance)))
    return found


def test_the_estimate_is_the_formula() -> None:
    draws = np.random.default_rng(0)
    trained = draws.random((12, 30)) < 0.7
    trained[:2], trained[2:4] = True, False
    right = draws.random((12, 30)) < np.where(trained, 0.8, 0.4)
    expected = np.array(written_out(right, trained))
    found = memorisation(right, trained)
    np.testing.assert_allclose(found.score, expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.standard_error, expected[:, 1], atol=1e-12)
    np.testing.assert_allclose(found.trained - found.left_out, found.score)


def test_what_was_never_left_out_is_not_known() -> None:
    right, trained = np.ones((3, 2), bool), np.array([[True, True], [True, True], [True, False]])
    found = memorisation(right, trained)
    assert np.isnan(found.score[0])
    assert found.score[1] == 0
    # Of one training alone there is no spread.
    assert np.isnan(found.standard_error).all()


def test_the_standard_error_covers_the_truth() -> None:
    draws = np.random.default_rng(1)
    trained = np.tile(np.arange(30)[:, None] % 3 > 0, (1, 4000))
    found = memorisation(draws.random((30, 4000)) < np.where(trained, 0.7, 0.5), trained)
    assert found.score.mean() == pytest.approx(0.2, abs=0.01)
    assert np.sqrt(np.mean(found.standard_error**2)) == pytest.approx(found.score.std(), rel=0.05)


def test_each_partition_has_a_mean_of_its_own() -> None:
    folds = np.array([0, 0, 1, 1, 2, 2])
    trained = np.array([folds != fold for fold in (0, 1, 2, 0, 1)])
    right = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], [1] * 6, [0] * 6, [1] * 6], dtype=bool)
    every, some = np.ones(6, bool), np.array([True, True, False, False, False, False])
    # In the first partition image 1 is right in one of two trainings and when it is left out; 2 is wrong left out.
    expected = [1 - 1, 1 / 2 - 1, 1 - 0, 1 - 1, 0, 0]
    assert mean_by_partition(right, trained, np.array([0, 0, 0, 1, 1]), every) == {0: pytest.approx(np.mean(expected))}
    assert mean_by_partition(right, trained, np.array([0, 0, 0, 1, 1]), some) == {0: pytest.approx(-1 / 4)}
    assert mean_by_partition(right, trained, np.array([0, 0, 0, 1, 1]), ~every) == {}
