"""Calibration of confidence: functions of probabilities [N,K] and labels [N], computed in float64.

Adversarial calibration is measured by the same functions, from the probabilities of the adversarial images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SMALLEST = float(np.finfo(np.float32).tiny)
"""Lower bound of a probability before its logarithm: a label that underflowed costs 87.3 nats, not infinity."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Accuracy against confidence in bins of equal width over [0,1]; both are nan in an empty bin."""

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
        """Expected calibration error: the mean over samples of |accuracy − mean confidence| of their bin."""
        return self.overconfidence_error + self.underconfidence_error

    @property
    def overconfidence_error(self) -> float:
        """The part of the ECE from bins more confident than accurate: Σ_b n_b/N · max(0, confidence_b − accuracy_b)."""
        return self._mean_gap(self.mean_confidence - self.accuracy)

    @property
    def underconfidence_error(self) -> float:
        """The part of the ECE from bins more accurate than confident; both parts add up to the ECE."""
        return self._mean_gap(self.accuracy - self.mean_confidence)

    def _mean_gap(self, gap: Array) -> float:
        filled = self.count > 0
        return float(np.maximum(gap[filled], 0) @ self.count[filled] / self.count.sum())


def reliability(probabilities: Array, labels: Array, bins: int = 15) -> Reliability:
    """Return the accuracy and the mean confidence of the top label in bins of confidence.

    A bin is [low, high), the last one [low, 1].

    Args:
        probabilities: [N,K].
        labels: int, [N].
        bins: number of bins, of equal width.
    """
    confidence, correct = _top_label(probabilities, labels)
    return _reliability(confidence, correct, bins)


def ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Return the expected calibration error in bins of equal width: Σ_b n_b/N · |accuracy_b − confidence_b|.

    Args:
        probabilities: [N,K].
        labels: int, [N].
        bins: number of bins.

    Returns:
        In [0,1]; 0 is perfectly calibrated.

    Example:
        >>> round(ece(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])), 9)   # confidence 0.8, accuracy 0.5
        0.3

    Reference: Guo et al. 2017, eq. 3.
    """
    return reliability(probabilities, labels, bins).ece


def adaptive_ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Return the expected calibration error of the top label in bins of equal count.

    Samples of the same confidence are given their mean correctness, so that the order of the rows does not matter.

    Args:
        probabilities: [N,K].
        labels: int, [N].
        bins: number of bins; at most N are used.

    Reference: Nguyen and O'Connor 2015.
    """
    confidence, correct = _top_label(probabilities, labels)
    values, tie, size = np.unique(confidence, return_inverse=True, return_counts=True)
    mean_correct = np.bincount(tie, weights=correct, minlength=len(values)) / size
    gaps = np.sort(confidence) - mean_correct.repeat(size)
    total = sum(abs(part.sum()) for part in np.array_split(gaps, bins))
    return float(total / len(gaps))


def classwise_ece(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Return the mean over classes k of the calibration error of p_k as the probability that the label is k.

    Args:
        probabilities: [N,K].
        labels: int, [N].
        bins: number of bins, of equal width.

    Reference: Kull et al. 2019, eq. 3 (there without the square).
    """
    columns = np.asarray(probabilities, dtype=np.float64).T
    errors = [_reliability(column, (labels == k).astype(np.float64), bins).ece for k, column in enumerate(columns)]
    return float(np.mean(errors))


def nll(probabilities: Array, labels: Array) -> float:
    """Return the mean negative log likelihood of the label, −log p_y, in nats; p is clipped at SMALLEST.

    Example:
        >>> nll(np.array([[0.5, 0.5]]), np.array([0]))   # log 2
        0.6931471805599453
    """
    label_probability = np.asarray(probabilities, dtype=np.float64)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(label_probability, SMALLEST)).mean())


def brier(probabilities: Array, labels: Array) -> float:
    """Return the Brier score, the mean of Σ_k (p_k − [y = k])²: a sum over classes, so between 0 and 2.

    Example:
        >>> brier(np.array([[0.5, 0.5]]), np.array([0]))
        0.5

    Reference: Brier 1950.
    """
    errors = np.array(probabilities, dtype=np.float64)
    errors[np.arange(len(labels)), labels] -= 1
    return float(np.square(errors).sum(axis=1).mean())


def overconfidence(probabilities: Array, labels: Array) -> float:
    """Return the mean confidence in the top label minus the accuracy; negative if the model is underconfident."""
    confidence, correct = _top_label(probabilities, labels)
    return float(confidence.mean() - correct.mean())


def fit_temperature(probabilities: Array, labels: Array) -> float:
    """Return the temperature t that minimises the nll of softmax(log p / t), by which the logits should be divided.

    The nll is convex in 1/t. The zero of its derivative, the mean of E_p[z] − z_y with z = log p, is found by
    bisection. log p differs from the logits by a constant in each row, so probabilities do as well as logits, unless
    one has underflowed.

    Args:
        probabilities: [N,K], of other images than those that results are reported on.
        labels: int, [N].

    Returns:
        t in [0.01, 100]; 0.01 if every prediction is right, because then a smaller t always lowers the nll.

    Reference: Guo et al. 2017, section 4.2.
    """
    log_p = _log(probabilities)
    label_log_p = log_p[np.arange(len(labels)), labels]
    low, high = np.log(0.01), np.log(100.0)
    for _ in range(50):
        middle = (low + high) / 2
        expected = (_softmax(log_p / np.exp(middle)) * log_p).sum(axis=1)
        too_sharp = np.mean(expected - label_log_p) > 0
        low, high = (middle, high) if too_sharp else (low, middle)
    return float(np.exp((low + high) / 2))


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """A model's calibration before and after its logits are divided by a temperature."""

    temperature: float
    """above 1 if the model is overconfident on the validation images"""
    before: dict[str, float]
    """as `calibration` returns it"""
    after: dict[str, float]


def temperature_scaling(
    validation: tuple[Array, Array], reported: tuple[Array, Array], bins: int = 15
) -> TemperatureScaling:
    """Fit the temperature on one part of the data and apply it to another; accuracy does not change.

    Args:
        validation: probabilities [M,K] and labels [M] to fit on, of images that were not trained on and of the same
            kind, such as adversarial ones (`robustill evaluate RUN --split validation`).
        reported: probabilities [N,K] and labels [N] of the images to report on.
        bins: number of bins of the calibration errors.

    Reference: Guo et al. 2017, section 4.2.
    """
    t = fit_temperature(*validation)
    probabilities, labels = reported
    return TemperatureScaling(
        temperature=t,
        before=calibration(probabilities, labels, bins),
        after=calibration(apply_temperature(probabilities, t), labels, bins),
    )


def calibration(probabilities: Array, labels: Array, bins: int = 15) -> dict[str, float]:
    """Return every measure of calibration by the name of its function, with both parts of the ECE."""
    diagram = reliability(probabilities, labels, bins)
    return {
        "ece": diagram.ece,
        "adaptive_ece": adaptive_ece(probabilities, labels, bins),
        "classwise_ece": classwise_ece(probabilities, labels, bins),
        "nll": nll(probabilities, labels),
        "brier": brier(probabilities, labels),
        "overconfidence": overconfidence(probabilities, labels),
        "overconfidence_error": diagram.overconfidence_error,
        "underconfidence_error": diagram.underconfidence_error,
    }


def apply_temperature(probabilities: Array, temperature: float) -> Array:
    """Return softmax(log p / t), [N,K], float64."""
    return _softmax(_log(probabilities) / temperature)


def _log(probabilities: Array) -> Array:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST))


def _softmax(logits: Array) -> Array:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def _top_label(probabilities: Array, labels: Array) -> tuple[Array, Array]:
    """Return the confidence in the top label, [N], and whether it is right, 0 or 1, [N]."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    return confidence, correct


def _reliability(confidence: Array, correct: Array, bins: int) -> Reliability:
    edges = np.linspace(0, 1, bins + 1)
    # Half-open to the right as in torchmetrics; a confidence of 1, or rounded to more, belongs to the last bin.
    bin_of = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bin_of, weights=confidence, minlength=bins) / count
        accuracy = np.bincount(bin_of, weights=correct, minlength=bins) / count
    return Reliability(edges=edges, count=count, mean_confidence=mean_confidence, accuracy=accuracy)
