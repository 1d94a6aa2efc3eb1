"""How well a score of images orders them as people do, and finds those whose labels people dispute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.compare import rank_above

Array = NDArray[Any]


def vote_entropy(counts: Array) -> Array:
    """−Σ_k p_k log p_k of the share p_k of people who chose class k, in nats, float64 [N].

    Args:
        counts: votes, [N,K], at least one an image.

    Example:
        >>> vote_entropy(np.array([[5, 5], [10, 0]])).round(4)   # log 2, 0
        array([0.6931, 0.    ])

    Reference: as human uncertainty: Peterson et al. 2019, Human uncertainty makes classification more robust.
    """
    p = counts / counts.sum(axis=1, keepdims=True, dtype=np.float64)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    # Not −(p·log p), which is −0 where all agree.
    entropy: Array = (p * (0.0 - logs)).sum(axis=1)
    return entropy


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score tells some images from the others: high scores should be theirs."""

    auroc: float
    """probability that one of them has a higher score than one of the others; 1/2 if nothing tells them"""
    low: float
    """lower end of its 95 % interval (Hanley and McNeil)"""
    high: float
    average_precision: float
    """precision averaged over recall; the share of them if nothing tells them"""
    found: int
    """how many there are"""
    num_samples: int
    """of all images that have a score"""


def detection(score: Array, flagged: Array) -> Detection:
    """Area under the ROC, with an interval, and average precision.

    Args:
        score: [N]; nan is left out.
        flagged: bool [N].

    Returns:
        nan where no image or every one is flagged.

    Reference: the interval: Hanley and McNeil 1982, The meaning and use of the area under a ROC curve.
    """
    known = ~np.isnan(score)
    score, flagged = score[known], flagged[known]
    n, m = int(flagged.sum()), int((~flagged).sum())
    if not n or not m:
        nan = math.nan
        return Detection(auroc=nan, low=nan, high=nan, average_precision=nan, found=n, num_samples=n + m)
    area = rank_above(score[flagged], score[~flagged])
    above, below = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (above - area**2) + (m - 1) * (below - area**2)) / (n * m)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(max(0.0, variance))
    return Detection(
        auroc=area,
        low=max(0.0, area - half),
        high=min(1.0, area + half),
        average_precision=average_precision(score, flagged),
        found=n,
        num_samples=n + m,
    )


def average_precision(score: Array, flagged: Array) -> float:
    """Σ_t (recall_t − recall_{t−1})·precision_t over the thresholds t from the highest score down; ties come together.

    Args:
        score: [N].
        flagged: bool [N], at least one.

    Example:
        >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))   # (1/1 + 2/3) / 2
        0.8333333333333333
    """
    values, place = np.unique(-score, return_inverse=True)
    hits = np.bincount(place, weights=flagged, minlength=len(values))
    reached = np.cumsum(np.bincount(place, minlength=len(values)))
    return float((hits * np.cumsum(hits) / reached).sum() / hits.sum())
