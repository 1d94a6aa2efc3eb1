"""Memorisation of training images: how much more accurate a method is on an image if it was trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.training_dynamics import masked_mean

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Memorisation:
    """Accuracy on each image with and without training on it, float64 [N]; nan if it was in every training, or none."""

    trained: Array
    """share of the trainings with the image in which it is classified correctly"""
    left_out: Array
    """share of the trainings without it in which it is classified correctly"""
    standard_error: Array
    """of their difference, over trainings; nan if either share is of one training, 0 if they agree, however few"""

    @property
    def score(self) -> Array:
        """In [−1, 1]: 1 for an image that is classified correctly only if it was trained on."""
        score: Array = self.trained - self.left_out
        return score


def memorisation(right: Array, trained: Array) -> Memorisation:
    """Estimate the influence of each image on itself, from trainings on random subsets.

    mem(i) = P[h(x_i) = y_i | i trained on] − P[h(x_i) = y_i | i left out], each probability estimated by its share p of
    n trainings; the standard error is √(p₁(1−p₁)/(n₁−1) + p₀(1−p₀)/(n₀−1)). For robust memorisation, an image is right
    if it is right under attack.

    Args:
        right: bool [K,N], whether each of K trainings classifies each image correctly.
        trained: bool [K,N], whether the training contained the image.

    Example:
        >>> right = np.array([[True], [True], [True], [False]])
        >>> trained = np.array([[True], [True], [False], [False]])
        >>> memorisation(right, trained).score
        array([0.5])

    Reference: Feldman and Zhang 2020, What neural networks memorize and why, eq. 1 and algorithm 1.
    """
    with_image, variance_with = _share_and_variance(right, trained)
    without_image, variance_without = _share_and_variance(right, ~trained)
    return Memorisation(
        trained=with_image, left_out=without_image, standard_error=np.sqrt(variance_with + variance_without)
    )


def _share_and_variance(right: Array, trainings: Array) -> tuple[Array, Array]:
    """Return the share of these trainings in which each image is right, and the variance of its estimate, [N] each."""
    share, number = masked_mean(right, trainings), trainings.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.where(number > 1, share * (1 - share) / (number - 1), np.nan)
    return share, variance


def mean_by_partition(right: Array, trained: Array, partition: Array, images: Array) -> dict[int, float]:
    """Return the mean memorisation over some images, from each partition of the training set into folds separately.

    Every partition gives an unbiased estimate of the mean, so their spread shows its uncertainty.

    Args:
        right: bool [K,N], whether each of K trainings classifies each image correctly.
        trained: bool [K,N], whether the training contained the image.
        partition: int [K], the partition that each training belongs to.
        images: bool [N], the images to average over.

    Returns:
        By partition, without those that lack a fold: no training left its images out.
    """
    means = {}
    for number in np.unique(partition):
        rows = partition == number
        score = memorisation(right[rows], trained[rows]).score
        if images.any() and not np.isnan(score).any():
            means[int(number)] = float(score[images].mean())
    return means
