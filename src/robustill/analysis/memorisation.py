"""How much a training set's own images are known by heart: what a method gains on an image from training on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.training_dynamics import mean_seen

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Memorisation:
    """Of each image, float64 [N]; nan where all trainings had it, or none."""

    trained: Array
    """share of the trainings on it in which it is right"""
    left_out: Array
    """share of the other trainings in which it is right"""
    standard_error: Array
    """of their difference, over trainings: 0 where these agree, however few; nan where either share is of one alone"""

    @property
    def score(self) -> Array:
        """In [−1, 1]: 1 is an image that is right if it was trained on and only then."""
        score: Array = self.trained - self.left_out
        return score


def memorisation(right: Array, trained: Array) -> Memorisation:
    """The influence of an image on itself, from trainings on random subsets.

    mem(i) = P[h(x_i) = y_i | i trained on] − P[h(x_i) = y_i | i left out], each probability as its share p of n
    trainings; the standard error is √(p₁(1−p₁)/(n₁−1) + p₀(1−p₀)/(n₀−1)). For robust memorisation, "right" is right
    under attack.

    Args:
        right: bool [K,N], in each of K trainings of each image.
        trained: bool [K,N], whether the training had the image.

    Example:
        >>> right = np.array([[True], [True], [True], [False]])
        >>> trained = np.array([[True], [True], [False], [False]])
        >>> memorisation(right, trained).score
        array([0.5])

    Reference: Feldman and Zhang 2020, What neural networks memorize and why, eq. 1 and algorithm 1.
    """
    shares, variances = [], []
    for having in (trained, ~trained):
        share, number = mean_seen(right, having), having.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            variances.append(np.where(number > 1, share * (1 - share) / (number - 1), np.nan))
        shares.append(share)
    return Memorisation(trained=shares[0], left_out=shares[1], standard_error=np.sqrt(variances[0] + variances[1]))


def mean_by_partition(right: Array, trained: Array, partition: Array, images: Array) -> dict[int, float]:
    """The mean memorisation over some images, from each partition of the training set into folds alone.

    Every partition gives an unbiased mean of its own, so that their spread says how well it is known.

    Args:
        right: bool [K,N], in each of K trainings of each image.
        trained: bool [K,N], whether the training had the image.
        partition: of each training, int [K].
        images: bool [N].

    Returns:
        By partition; one that lacks a fold, whose images no training left out, is not there.
    """
    means = {}
    for number in np.unique(partition):
        rows = partition == number
        score = memorisation(right[rows], trained[rows]).score
        if images.any() and not np.isnan(score).any():
            means[int(number)] = float(score[images].mean())
    return means
