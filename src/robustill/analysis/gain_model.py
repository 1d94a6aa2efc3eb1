"""What a student gains from a teacher, predicted from measures of the teacher by ridge regression.

The regression is fitted to teachers whose students were trained (`benchmarks/studies/teacher_pairs.py`), and its
numbers come with the package as gain_model.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.statistics import rank_correlation

Array = NDArray[Any]
FILE = Path(__file__).with_name("gain_model.json")
"""The model of the package."""

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Penalties among which `fit` chooses, as shares of the number of rows."""


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """A linear function of standardised features, for several targets: intercept + z·coefficients.

    Args:
        mean: of each feature, [F].
        scale: its standard deviation, [F]; 1 for a constant feature.
        coefficients: [F,A], for standardised features.
        intercept: [A].
        inverse: (ZᵀZ + λ·I)⁻¹, [F,F].
        num_rows: number of rows that it was fitted to.
        penalty: λ.
    """

    mean: Array
    scale: Array
    coefficients: Array
    intercept: Array
    inverse: Array
    num_rows: int
    penalty: float

    def standardised(self, x: Array) -> Array:
        """Return features in units of their spread; a missing one, nan, is taken as the mean, 0."""
        z: Array = (x - self.mean) / self.scale
        return np.where(np.isnan(z), 0.0, z)

    def predict(self, x: Array) -> Array:
        """Return the prediction for each row and target, [n,A]."""
        values: Array = self.intercept + self.standardised(x) @ self.coefficients
        return values

    def leverage(self, x: Array) -> Array:
        """Return 1/n + zᵀ(ZᵀZ + λ·I)⁻¹z, [n]: how far each row lies from those that were fitted."""
        z = self.standardised(x)
        values: Array = 1 / self.num_rows + np.einsum("nf,fg,ng->n", z, self.inverse, z)
        return values


def fit_ridge(x: Array, y: Array, penalty: float) -> Ridge:
    """Minimise ‖y − b − Z·w‖² + λ·‖w‖² in closed form, with features standardised and the intercept not penalised.

    Args:
        x: [n,F].
        y: [n,A].
        penalty: λ ≥ 0.

    Example:
        >>> line = fit_ridge(np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [5.0]]), 0.0)
        >>> line.predict(np.array([[3.0]])).round(6).tolist()
        [[7.0]]

    Reference: Hoerl and Kennard 1970.
    """
    mean = np.nanmean(x, axis=0)
    deviation = np.nanstd(x, axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    z = np.where(np.isnan(x), 0.0, (x - mean) / scale)
    intercept = y.mean(axis=0)
    inverse = np.linalg.pinv(z.T @ z + penalty * np.eye(x.shape[1]))
    coefficients = inverse @ z.T @ (y - intercept)
    return Ridge(
        mean=mean,
        scale=scale,
        coefficients=coefficients,
        # The standardised features of complete rows have mean 0; where one is missing they do not.
        intercept=intercept - z.mean(axis=0) @ coefficients,
        inverse=inverse,
        num_rows=len(x),
        penalty=penalty,
    )


def choose_penalty(x: Array, y: Array) -> float:
    """Return the penalty of RIDGES with the smallest squared error when each row is left out, by the closed form."""
    errors = []
    for share in RIDGES:
        model = fit_ridge(x, y, share * len(x))
        residuals = (y - model.predict(x)) / (1 - np.minimum(model.leverage(x), 0.99))[:, None]
        errors.append(float(np.square(residuals).sum()))
    return RIDGES[int(np.argmin(errors))] * len(x)


def leave_groups_out(x: Array, y: Array, groups: Sequence[str]) -> Array:
    """Return the prediction of each row by a fit to the rows of all other groups, [n,A].

    Args:
        x: [n,F].
        y: [n,A].
        groups: the group of each row, of which there are at least two.
    """
    of = np.array(groups)
    predictions = np.empty_like(y)
    for group in dict.fromkeys(groups):
        others = of != group
        model = fit_ridge(x[others], y[others], choose_penalty(x[others], y[others]))
        predictions[~others] = model.predict(x[~others])
    return predictions


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A predicted gain in robust accuracy, with its 95 % prediction interval.

    Args:
        gain: as a share: 0.01 is a point.
        low: the lower end of the interval.
        high: the upper end.
    """

    gain: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether the interval includes no gain at all."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, kw_only=True)
class GainModel:
    """The regression of the package, one target for each mixing weight α.

    Args:
        features: the names of the features.
        alphas: the mixing weight of each target.
        ridge: the fitted function.
        errors: root mean square error of each target when the data set of a row was left out, [A].
        evidence: what it was fitted to, and how well it ranks the teachers of a data set that was left out.
    """

    features: tuple[str, ...]
    alphas: tuple[float, ...]
    ridge: Ridge
    errors: Array
    evidence: Mapping[str, Any]

    def predict(self, x: Array) -> list[dict[float, Prediction]]:
        """Return the predictions of each row, by α.

        The interval is ± t·s·√(1 + h): s is the error on data sets that were left out, and h the leverage, so that it
        is wider for teachers unlike those of the evidence.
        """
        from scipy.special import stdtrit

        gains, leverage = self.ridge.predict(x), self.ridge.leverage(x)
        freedom = max(1, self.ridge.num_rows - len(self.features) - 1)
        half_widths = stdtrit(freedom, 0.975) * self.errors[None] * np.sqrt(1 + leverage)[:, None]
        return [
            {
                alpha: Prediction(gain=float(gain), low=float(gain - half), high=float(gain + half))
                for alpha, gain, half in zip(self.alphas, row, halves, strict=True)
            }
            for row, halves in zip(gains, half_widths, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as `from_json` takes them."""
        ridge = self.ridge
        return {
            "features": list(self.features),
            "alphas": list(self.alphas),
            "mean": ridge.mean.tolist(),
            "scale": ridge.scale.tolist(),
            "coefficients": ridge.coefficients.tolist(),
            "intercept": ridge.intercept.tolist(),
            "inverse": ridge.inverse.tolist(),
            "num_rows": ridge.num_rows,
            "penalty": ridge.penalty,
            "errors": self.errors.tolist(),
            "evidence": dict(self.evidence),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GainModel:
        """Return the model whose values `to_json` returned."""
        arrays = {name: np.array(values[name]) for name in ("mean", "scale", "coefficients", "intercept", "inverse")}
        return cls(
            features=tuple(values["features"]),
            alphas=tuple(values["alphas"]),
            ridge=Ridge(**arrays, num_rows=values["num_rows"], penalty=values["penalty"]),
            errors=np.array(values["errors"]),
            evidence=values["evidence"],
        )


def load_gain_model(file: Path = FILE) -> GainModel:
    """Read the model that comes with the package."""
    return GainModel.from_json(json.loads(file.read_text(encoding="utf-8")))


def fit_gain_model(
    x: Array, y: Array, groups: Sequence[str], features: Sequence[str], alphas: Sequence[float], note: Mapping[str, Any]
) -> GainModel:
    """Fit the regression, and measure it on data sets that are left out one after the other.

    Args:
        x: the features of each teacher, [n,F].
        y: what its students gained at each α, [n,A].
        groups: the data set of each teacher.
        features: the names of the features.
        alphas: the mixing weight of each column of y.
        note: what else is to be recorded of the evidence.
    """
    left_out = leave_groups_out(x, y, groups)
    of = np.array(groups)
    by_group = {
        group: {
            f"{alpha:g}": rank_correlation(left_out[of == group, column], y[of == group, column])
            for column, alpha in enumerate(alphas)
        }
        for group in dict.fromkeys(groups)
    }
    return GainModel(
        features=tuple(features),
        alphas=tuple(alphas),
        ridge=fit_ridge(x, y, choose_penalty(x, y)),
        errors=np.sqrt(np.square(left_out - y).mean(axis=0)),
        evidence={
            **note,
            "teachers": len(x),
            "spearman_left_out": by_group,
            "rmse_left_out": {
                group: float(math.sqrt(np.square(left_out - y)[of == group].mean())) for group in dict.fromkeys(groups)
            },
            "rmse_of_no_gain": float(math.sqrt(np.square(y).mean())),
        },
    )
