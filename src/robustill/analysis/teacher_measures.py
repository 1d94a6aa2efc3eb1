"""What is measured of a candidate teacher, from its probabilities on held-out images and on attacks of baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.calibration import SMALLEST, ece, fit_temperature

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What a few cheap networks of the student's architecture do on the images that a candidate is measured on.

    Args:
        robust_accuracy: the mean over the baselines, each under its own attack.
        clean_accuracy: the mean over the baselines.
        unlearnable: bool [N], the images that no baseline classifies correctly under attack.
    """

    robust_accuracy: float
    clean_accuracy: float
    unlearnable: Array


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of one candidate. Its entropies and confidences are taken on the attacks of the baselines.

    Args:
        clean_accuracy: on clean images.
        robust_accuracy: under PGD against the candidate itself.
        transfer_accuracy: on the images of the attacks of the baselines, which are what a student would show it.
        ece_clean: expected calibration error on clean images.
        ece_adversarial: on the attacks of the candidate.
        ece_transfer: on the attacks of the baselines.
        entropy_unlearnable: mean entropy on the images that no baseline holds, as a share of log K; nan without any.
        confidence_unlearnable: mean probability of the top label there; nan without any.
        entropy_elsewhere: mean entropy on the other images, as a share of log K; nan without any.
        confidence_elsewhere: mean probability of the top label there; nan without any.
        temperature: that calibrates the candidate on the attacks of the baselines.
        members_disagree: for an ensemble the share of pairs of members and images with two top labels; None otherwise.
    """

    clean_accuracy: float
    robust_accuracy: float
    transfer_accuracy: float
    ece_clean: float
    ece_adversarial: float
    ece_transfer: float
    entropy_unlearnable: float
    confidence_unlearnable: float
    entropy_elsewhere: float
    confidence_elsewhere: float
    temperature: float
    members_disagree: float | None = None


def robustly_unlearnable(robust: Array) -> Array:
    """Return the images that no baseline holds, bool [N].

    Args:
        robust: bool [M,N], whether baseline m classifies image n correctly, clean and under attack.

    Example:
        >>> robustly_unlearnable(np.array([[True, False, False], [False, True, False]]))
        array([False, False,  True])
    """
    held: Array = np.logical_or.reduce(robust, axis=0)
    return ~held


def entropy(probabilities: Array) -> Array:
    """Return −Σ_k p_k log p_k in nats, over the last axis.

    Example:
        >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).round(4).tolist()   # log 2, 0
        [0.6931, 0.0]
    """
    p = np.asarray(probabilities, dtype=np.float64)
    values: Array = -(p * np.log(np.maximum(p, SMALLEST))).sum(axis=-1)
    return np.maximum(values, 0.0)


def measure(
    labels: Array,
    clean: Array,
    adversarial: Array,
    transferred: Array,
    unlearnable: Array,
    members_disagree: float | None = None,
) -> Measures:
    """Compute the measures of one candidate.

    Args:
        labels: int [N].
        clean: its probabilities of clean images, [N,K].
        adversarial: of the images of PGD against it, [N,K].
        transferred: of the images of PGD against each baseline, [M,N,K].
        unlearnable: bool [N].
        members_disagree: see `Measures`.
    """
    num_baselines, _, num_classes = transferred.shape
    shown, shown_labels = transferred.reshape(-1, num_classes), np.tile(labels, num_baselines)
    entropies = entropy(transferred) / math.log(num_classes)
    confidences = transferred.max(axis=-1).astype(np.float64)
    correct = clean.argmax(axis=1) == labels
    return Measures(
        clean_accuracy=float(correct.mean()),
        robust_accuracy=float((correct & (adversarial.argmax(axis=1) == labels)).mean()),
        transfer_accuracy=float((shown.argmax(axis=1) == shown_labels).mean()),
        ece_clean=ece(clean, labels),
        ece_adversarial=ece(adversarial, labels),
        ece_transfer=ece(shown, shown_labels),
        entropy_unlearnable=_mean(entropies[:, unlearnable]),
        confidence_unlearnable=_mean(confidences[:, unlearnable]),
        entropy_elsewhere=_mean(entropies[:, ~unlearnable]),
        confidence_elsewhere=_mean(confidences[:, ~unlearnable]),
        temperature=fit_temperature(shown, shown_labels),
        members_disagree=members_disagree,
    )


def disagreement(first: Array, second: Array) -> float:
    """Return the share of images with two different top labels.

    Args:
        first: top labels, int of any shape.
        second: the same images in the same order.
    """
    return float((first != second).mean())


def pairwise_disagreement(top_labels: Array) -> Array:
    """Return the disagreement of each pair, float64 [C,C].

    Args:
        top_labels: int [C, ...].
    """
    return np.array([[disagreement(a, b) for b in top_labels] for a in top_labels], dtype=np.float64)


FEATURES = ("robust", "transfer", "ece_transfer", "entropy_unlearnable", "entropy_elsewhere")
"""What the gain of a student is predicted from, in the order of `features`."""


def features(measures: Measures, baselines: Baselines) -> Array:
    """Return the features of a candidate, float64 [len(FEATURES)]; accuracies are differences to the baselines.

    The accuracies of two data sets cannot be compared, and what a teacher knows more than the student alone can.
    """
    return np.array(
        [
            measures.robust_accuracy - baselines.robust_accuracy,
            measures.transfer_accuracy - baselines.robust_accuracy,
            measures.ece_transfer,
            measures.entropy_unlearnable,
            measures.entropy_elsewhere,
        ],
        dtype=np.float64,
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else math.nan
