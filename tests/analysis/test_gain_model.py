"""The regression against numpy's least squares, its leave-one-out by fitting again, and the model of the package."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robustill.analysis.gain_model import (
    FILE,
    RIDGES,
    GainModel,
    Prediction,
    choose_penalty,
    fit_gain_model,
    fit_ridge,
    leave_groups_out,
    load_gain_model,
)
from robustill.analysis.statistics import rank_correlation
from robustill.analysis.teacher_measures import FEATURES

Array = NDArray[Any]


def rows(n: int = 24, noise: float = 0.1, seed: int = 0) -> tuple[Array, Array, list[str]]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, -2.0]
    weights = np.array([[1.0, -1.0], [0.05, 0.0], [2.0, 3.0]])
    return x, x @ weights + noise * draw.normal(size=(n, 2)), ["ab"[number % 2] for number in range(n)]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 30.0])
def test_the_ridge_is_least_squares_with_rows_added(penalty: float) -> None:
    x, y, _ = rows()
    found = fit_ridge(x, y, penalty)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    # √λ·w = 0 is a row for each feature; the intercept, a column of ones, has none.
    a = np.block([[z, np.ones((len(z), 1))], [np.sqrt(penalty) * np.eye(3), np.zeros((3, 1))]])
    solution = np.linalg.lstsq(a, np.vstack([y, np.zeros((3, 2))]), rcond=None)[0]
    assert found.coefficients == pytest.approx(solution[:3])
    assert found.intercept == pytest.approx(solution[3])
    assert found.predict(x) == pytest.approx(a[: len(z)] @ solution)


def test_the_leverage_is_the_diagonal_of_the_hat_matrix() -> None:
    x, y, _ = rows()
    found = fit_ridge(x, y, 2.0)
    # How much the prediction of a row moves with its own target.
    for row in (0, 5):
        moved = y.copy()
        moved[row] += 1.0
        change = fit_ridge(x, moved, 2.0).predict(x)[row] - found.predict(x)[row]
        assert found.leverage(x)[row] == pytest.approx(change[0])


def test_the_penalty_has_the_smallest_error_of_rows_that_are_left_out() -> None:
    # The closed form is exact for features that are standardised once.
    x, y, _ = rows(noise=3.0)
    z = (x - x.mean(axis=0)) / x.std(axis=0)

    def error(share: float) -> float:
        total = 0.0
        for row in range(len(z)):
            others = np.arange(len(z)) != row
            a = np.block(
                [
                    [z[others], np.ones((len(z) - 1, 1))],
                    [np.sqrt(share * len(z)) * np.eye(3), np.zeros((3, 1))],
                ]
            )
            w = np.linalg.lstsq(a, np.vstack([y[others], np.zeros((3, 2))]), rcond=None)[0]
            total += float(np.square(y[row] - z[row] @ w[:3] - w[3]).sum())
        return total

    assert choose_penalty(x, y) == pytest.approx(min(RIDGES, key=error) * len(x))


def test_a_missing_feature_is_taken_as_the_mean() -> None:
    x, y, _ = rows()
    found = fit_ridge(x, y, 1.0)
    unknown, mean = x[:1].copy(), x[:1].copy()
    unknown[0, 1], mean[0, 1] = np.nan, x[:, 1].mean()
    assert found.predict(unknown) == pytest.approx(found.predict(mean))


def test_a_group_that_is_left_out_has_no_part_in_its_prediction() -> None:
    x, y, groups = rows()
    found = leave_groups_out(x, y, groups)
    is_a = np.array(groups) == "a"
    changed = y.copy()
    changed[is_a] = 99.0
    assert leave_groups_out(x, changed, groups)[is_a] == pytest.approx(found[is_a])
    only_b = fit_ridge(x[~is_a], y[~is_a], choose_penalty(x[~is_a], y[~is_a]))
    assert found[is_a] == pytest.approx(only_b.predict(x[is_a]))


def test_a_fit_states_how_it_ranks_a_group_that_it_has_not_seen_and_survives_json() -> None:
    x, y, groups = rows(noise=0.01)
    model = fit_gain_model(x, y, groups, ["a", "b", "c"], [0.5, 1.0], {"table": "made up"})
    left_out = leave_groups_out(x, y, groups)
    is_a = np.array(groups) == "a"
    expected = rank_correlation(left_out[is_a, 1], y[is_a, 1])
    assert model.evidence["spearman_left_out"]["a"]["1"] == pytest.approx(expected) != 0
    assert model.errors == pytest.approx(np.sqrt(((left_out - y) ** 2).mean(axis=0)))
    read = GainModel.from_json(json.loads(json.dumps(model.to_json())))
    assert read.predict(x) == model.predict(x)


def test_an_interval_holds_nineteen_of_twenty_new_rows_and_is_wider_far_away() -> None:
    x, y, groups = rows(200, noise=0.5)
    model = fit_gain_model(x, y, groups, ["a", "b", "c"], [0.5, 1.0], {})
    new_x, new_y, _ = rows(400, noise=0.5, seed=1)
    inside = [
        each[0.5].low <= value[0] <= each[0.5].high for each, value in zip(model.predict(new_x), new_y, strict=True)
    ]
    assert 0.92 < np.mean(inside) < 0.98
    centre, far = model.predict(np.stack([x.mean(axis=0), x.mean(axis=0) + 20 * x.std(axis=0)]))
    assert far[1.0].high - far[1.0].low > 1.2 * (centre[1.0].high - centre[1.0].low)


@pytest.mark.parametrize(("low", "high", "expected"), [(-1.0, 1.0, True), (0.1, 1.0, False), (-1.0, -0.1, False)])
def test_an_interval_includes_zero(low: float, high: float, expected: bool) -> None:
    assert Prediction(gain=(low + high) / 2, low=low, high=high).includes_zero is expected


def test_the_model_of_the_package_has_the_features_that_are_measured() -> None:
    model = load_gain_model()
    assert model.features == FEATURES
    assert model.ridge.coefficients.shape == (len(FEATURES), len(model.alphas))
    assert FILE.stat().st_size < 20_000
