"""Whether confidence can be believed: functions of probabilities [N,K] and labels [N], in float64.

Adversarial calibration is the same functions on the probabilities of the adversarial images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SMALLEST = float(np.finfo(np.float32).tiny)
"""Probabilities are clipped here before a logarithm: one underflowed label costs 87.3 nats, not infinity."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Confidence against accuracy in bins of equal width over [0,1]; an empty bin has nan for both means."""

    edges: Array
    """[bins + 1]"""
    count: Array
    """int [bins]"""
    mean_confidence: Array
    """[bins]"""
    accuracy: Array
    """[bins]"""

    @property
    def ece(self) -> float:
        """The mean over samples of |accuracy − mean confidence| of the bin they are in."""
        return self.too_sure + self.too_modest

    @property
    def too_sure(self) -> float:
        """The part of the ECE from bins that are surer than right: Σ_b n_b/N · max(0, confidence_b − accuracy_b)."""
        return self._mean_gap(self.mean_confidence - self.accuracy)

    @property
    def too_modest(self) -> float:
        """The part from bins whose accuracy is above their confidence; both parts together are the ECE."""
        return self._mean_gap(self.accuracy - self.mean_confidence)

    def _mean_gap(self, gap: Array) -> float:
        filled = self.count > 0
        return float(np.maximum(gap[filled], 0) @ self.count[filled] / self.count.sum())


def reliability(probabilities: Array, labels: Array, bins: int = 15) -> Reliability:
    """Accuracy and mean confidence of the top label, by confidence.

    A bin is [low, high), the last one [low, 1].

    Args:
        probabilities: [N,K].
        labels: int, [N].
        bins: how many, of equal width.
    """
    confidence, correct = _top_label(probabilities, labels)
    return _binned(confidence, correct, bins)


def ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Expected calibration error of the top label, bins of equal width: Σ_b n_b/N · |accuracy_b − confidence_b|.

    Args:
        probabilities: [N,K].
        labels: int, [N].
        bins: how many.

    Returns:
        In [0,1]; 0 is calibrated.

    Example:
        >>> round(ece(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])), 9)   # says 0.8, is right half the time
        0.3

    Reference: Guo et al. 2017, eq. 3.
    """
    return reliability(probabilities, labels, bins).ece


def adaptive_ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Expected calibration error of the top label, bins of equal count.

    Samples of the same confidence share their mean correctness, so that the order of the rows does not matter.

    Args:
        probabilities: [N,K].
        labels: int, [N].
        bins: how many; no more than N are used.

    Reference: Nguyen and O'Connor 2015.
    """
    confidence, correct = _top_label(probabilities, labels)
    values, tie, size = np.unique(confidence, return_inverse=True, return_counts=True)
    shared = np.bincount(tie, weights=correct, minlength=len(values)) / size
    ranked = np.sort(confidence) - shared.repeat(size)
    return float(sum(abs(part.sum()) for part in np.array_split(ranked, bins)) / len(ranked))


def classwise_ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Mean over classes k of the calibration error of p_k as the probability of "the label is k".

    Args:
        probabilities: [N,K].
        labels: int, [N].
        bins: how many, of equal width.

    Reference: Kull et al. 2019, eq. 3 (there without the square).
    """
    columns = np.asarray(probabilities, dtype=np.float64).T
    errors = [_binned(column, (labels == k).astype(np.float64), bins).ece for k, column in enumerate(columns)]
    return float(np.mean(errors))


def nll(probabilities: Array, labels: Array) -> float:
    """Mean negative log likelihood of the label, −log p_y, in nats; p is clipped at SMALLEST.

    Example:
        >>> nll(np.array([[0.5, 0.5]]), np.array([0]))   # log 2
        0.6931471805599453
    """
    of_label = np.asarray(probabilities, dtype=np.float64)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, SMALLEST)).mean())


def brier(probabilities: Array, labels: Array) -> float:
    """Mean of Σ_k (p_k − [y = k])²: a sum over classes, so between 0 and 2.

    Example:
        >>> brier(np.array([[0.5, 0.5]]), np.array([0]))
        0.5

    Reference: Brier 1950.
    """
    gap = np.array(probabilities, dtype=np.float64)
    gap[np.arange(len(labels)), labels] -= 1
    return float(np.square(gap).sum(axis=1).mean())


def overconfidence(probabilities: Array, labels: Array) -> float:
    """Mean confidence in the top label minus accuracy: positive is too sure, negative too modest."""
    confidence, correct = _top_label(probabilities, labels)
    return float(confidence.mean() - correct.mean())


def fit_temperature(probabilities: Array, labels: Array) -> float:
    """The t that minimises the nll of softmax(log p / t): how much the logits should be divided by.

    The nll is convex in 1/t; its derivative, mean of E_p[z] − z_y with z = log p, is bisected. log p differs from the
    logits by a constant a row, so probabilities serve as well, except where one has underflowed.

    Args:
        probabilities: [N,K], of a part of the data that is not the one reported on.
        labels: int, [N].

    Returns:
        t in [0.01, 100]; 0.01 where every prediction is right, for then no t is small enough.

    Reference: Guo et al. 2017, section 4.2.
    """
    log_p = _log(probabilities)
    of_label = log_p[np.arange(len(labels)), labels]
    low, high = np.log(0.01), np.log(100.0)
    for _ in range(50):
        middle = (low + high) / 2
        expected = (_softmax(log_p / np.exp(middle)) * log_p).sum(axis=1)
        too_sharp = np.mean(expected - of_label) > 0
        low, high = (middle, high) if too_sharp else (low, middle)
    return float(np.exp((low + high) / 2))


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What one temperature does to a model's calibration."""

    temperature: float
    """above 1: the model was too sure on the held-out part"""
    before: dict[str, float]
    """as `calibration` gives it"""
    after: dict[str, float]


def temperature_scaled(held_out: tuple[Array, Array], reported: tuple[Array, Array], bins: int = 15) -> Scaled:
    """Fit the temperature on one part of the data and say what it does to another; accuracy does not change.

    Args:
        held_out: probabilities [M,K] and labels [M] to fit on: of images neither trained nor reported on, of the same
            kind, such as adversarial ones (`robustill evaluate RUN --split validation`).
        reported: probabilities [N,K] and labels [N].
        bins: of the calibration errors.

    Reference: Guo et al. 2017, section 4.2.
    """
    t = fit_temperature(*held_out)
    probabilities, labels = reported
    return Scaled(
        temperature=t,
        before=calibration(probabilities, labels, bins),
        after=calibration(apply_temperature(probabilities, t), labels, bins),
    )


def calibration(probabilities: Array, labels: Array, bins: int = 15) -> dict[str, float]:
    """Every measure of it: ece, adaptive_ece, classwise_ece, nll, brier, overconfidence, too_sure, too_modest."""
    diagram = reliability(probabilities, labels, bins)
    return {
        "ece": diagram.ece,
        "adaptive_ece": adaptive_ece(probabilities, labels, bins),
        "classwise_ece": classwise_ece(probabilities, labels, bins),
        "nll": nll(probabilities, labels),
        "brier": brier(probabilities, labels),
        "overconfidence": overconfidence(probabilities, labels),
        "too_sure": diagram.too_sure,
        "too_modest": diagram.too_modest,
    }


def apply_temperature(probabilities: Array, temperature: float) -> Array:
    """softmax(log p / t), [N,K], float64."""
    return _softmax(_log(probabilities) / temperature)


def _log(probabilities: Array) -> Array:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST))


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: Array = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def _top_label(probabilities: Array, labels: Array) -> tuple[Array, Array]:
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    return confidence, correct


def _binned(confidence: Array, correct: Array, bins: int) -> Reliability:
    edges = np.linspace(0, 1, bins + 1)
    # Half-open to the right as in torchmetrics; a confidence of exactly 1, or one rounded above it, joins the last bin.
    bin_of = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bin_of, weights=confidence, minlength=bins) / count
        accuracy = np.bincount(bin_of, weights=correct, minlength=bins) / count
    return Reliability(edges=edges, count=count, mean_confidence=mean_confidence, accuracy=accuracy)
