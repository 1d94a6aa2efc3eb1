"""Whether a difference can be told from noise: intervals and paired tests on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.calibration import SMALLEST

_RESAMPLES = 10_000


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion; unlike p ± 1.96·σ it stays in [0,1] and has a width at 0 and at n.

    Args:
        successes: 0 to n.
        n: at least 1.
        level: probability that such an interval holds the true proportion.

    Example:
        >>> low, high = wilson_interval(0, 10)      # 0 to z² / (n + z²)
        >>> round(low, 4), round(high, 4)
        (0.0, 0.2775)

    Reference: Wilson 1927.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Both ends are exact in the limit, where rounding may leave 1e-17 of the wrong sign.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Of two proportions on the same images, first minus second."""

    difference: float
    low: float
    """lower end of the bootstrap 95 % interval"""
    high: float
    p_value: float
    """McNemar's exact test: how probable so uneven a split is if neither is better"""
    only_first: int
    """images that only the first has right"""
    only_second: int
    num_images: int

    @property
    def significant(self) -> bool:
        """Whether the test and the interval both speak of a difference."""
        return self.p_value < 0.05 and not self.low <= 0 <= self.high

    @property
    def sentence(self) -> str:
        """Whether the difference can be told from noise, in plain words."""
        figures = (
            f"{100 * self.difference:+.1f} points on {self.num_images} images, 95 % interval "
            f"{100 * self.low:+.1f} to {100 * self.high:+.1f}, McNemar p {format_p(self.p_value)}"
        ).replace("-", "−")
        if not self.significant:
            return f"The difference cannot be told from noise ({figures})."
        return f"The {'first' if self.difference > 0 else 'second'} is better ({figures})."


def paired_difference(flags_a: NDArray[np.bool_], flags_b: NDArray[np.bool_], seed: int = 0) -> PairedDifference:
    """Share of images right in a minus share right in b, with what pairing tells about its noise.

    The interval is the percentile bootstrap over images. It covers the choice of images, not of training seeds: two
    students of one method and different seeds may differ by more.

    Args:
        flags_a: bool [N], whether the first is right, image by image.
        flags_b: bool [N], the second, on the same images in the same order.
        seed: of the bootstrap.

    Reference: McNemar 1947; Efron 1979.
    """
    from scipy.stats import binomtest

    assert flags_a.shape == flags_b.shape
    assert flags_a.ndim == 1
    n = len(flags_a)
    only_first = int((flags_a & ~flags_b).sum())
    only_second = int((flags_b & ~flags_a).sum())
    discordant = only_first + only_second
    # A resample of images is a multinomial draw of the three kinds: right only in a, only in b, no difference.
    shares = np.array([only_first, only_second, n - discordant]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=_RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return PairedDifference(
        difference=(only_first - only_second) / n,
        low=float(low),
        high=float(high),
        p_value=float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
        only_first=only_first,
        only_second=only_second,
        num_images=n,
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of any number between two models on the same images, first minus second."""

    difference: float
    low: float
    """lower end of the bootstrap 95 % interval"""
    high: float
    num_images: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.low <= 0 <= self.high

    @property
    def sentence(self) -> str:
        """Whether the difference can be told from noise, in plain words; which sign is better, the metric says."""
        figures = (
            f"{self.difference:+.4g} on {self.num_images} images, 95 % interval {self.low:+.4g} to {self.high:+.4g}"
        ).replace("-", "−")
        if not self.significant:
            return f"The difference cannot be told from noise ({figures})."
        return f"The first is {'higher' if self.difference > 0 else 'lower'} ({figures})."


def bootstrap_difference(
    metric: Callable[..., float],
    first: Sequence[NDArray[Any]],
    second: Sequence[NDArray[Any]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Of a metric such as the NLL, with the percentile interval of resampling images, the same ones for both models.

    The metric must be a mean over images, or a smooth function of such. Resampling adds to the bias of any other: of
    two perfectly calibrated models the flatter one has the larger ECE in a sample, and this interval would take that
    for a difference; a minimum over classes likewise. Compare calibration by NLL or Brier score, or over seeds.

    Args:
        metric: of arrays with one row an image, e.g. `calibration.nll` of (probabilities [N,K], labels [N]).
        first: its arguments for the first model.
        second: for the second, on the same images in the same order.
        resamples: how many.
        seed: of them.

    Reference: Efron 1979.
    """
    n = len(first[0])
    assert all(len(array) == n for array in (*first, *second))
    draws = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for number in range(resamples):
        rows = draws.integers(0, n, n)
        differences[number] = metric(*(each[rows] for each in first)) - metric(*(each[rows] for each in second))
    low, high = np.quantile(differences, [0.025, 0.975])
    return Difference(
        difference=float(metric(*first) - metric(*second)), low=float(low), high=float(high), num_images=n
    )


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """Of one class."""

    label: int
    right: int
    num_images: int

    @property
    def accuracy(self) -> float:
        """In [0,1]."""
        return self.right / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson)."""
        return wilson_interval(self.right, self.num_images)


def class_accuracies(labels: NDArray[Any], right: NDArray[np.bool_]) -> list[ClassAccuracy]:
    """Accuracy of every class that has an image, by ascending label.

    Args:
        labels: int [N].
        right: bool [N], e.g. `Records.robust`.

    Example:
        >>> found = class_accuracies(np.array([0, 0, 2]), np.array([True, False, True]))
        >>> [each.accuracy for each in found]
        [0.5, 1.0]
    """
    return [
        ClassAccuracy(label=int(k), right=int(right[labels == k].sum()), num_images=int((labels == k).sum()))
        for k in np.unique(labels)
    ]


def worst_class_accuracy(labels: NDArray[Any], right: NDArray[np.bool_]) -> float:
    """The smallest accuracy of a class: min_k mean_{i: y_i = k} right_i, in [0,1].

    The minimum over few images a class is below the accuracy of any class of many; compare two models class by class,
    with `class_differences`.

    Args:
        labels: int [N].
        right: bool [N].

    Reference: as a metric of robust fairness: Xu et al. 2021, To be robust or to be fair, section 5.
    """
    return min(each.accuracy for each in class_accuracies(labels, right))


def class_differences(
    labels: NDArray[Any], flags_a: NDArray[np.bool_], flags_b: NDArray[np.bool_]
) -> dict[int, tuple[PairedDifference, float]]:
    """`paired_difference` within each class, with its p-value adjusted for asking about every class at once.

    Holm: of the p-values in ascending order, p̃_i = max_{j ≤ i} min(1, (m − j + 1)·p_j).

    Args:
        labels: int [N].
        flags_a: bool [N], whether the first is right.
        flags_b: bool [N], the second, on the same images in the same order.

    Returns:
        {label: (difference, adjusted p)}.

    Reference: Holm 1979.
    """
    found = {int(k): paired_difference(flags_a[labels == k], flags_b[labels == k]) for k in np.unique(labels)}
    adjusted, so_far = {}, 0.0
    for rank, k in enumerate(sorted(found, key=lambda k: found[k].p_value)):
        so_far = max(so_far, min(1.0, (len(found) - rank) * found[k].p_value))
        adjusted[k] = so_far
    return {k: (each, adjusted[k]) for k, each in found.items()}


def agreement(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Share of images for which two models predict the same class, in [0,1].

    Args:
        first: probabilities, [N,K].
        second: [N,K], on the same images in the same order.

    Reference: top-1 agreement: Stanton et al. 2021, Does knowledge distillation really work?, eq. 3.
    """
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def mean_kl(target: NDArray[Any], prediction: NDArray[Any]) -> float:
    """Mean over images of KL(target ‖ prediction) = Σ_k p_k·(log p_k − log q_k), in nats; q is clipped at SMALLEST.

    Args:
        target: p, the teacher's probabilities, [N,K].
        prediction: q, the student's, [N,K].

    Example:
        >>> round(mean_kl(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]])), 4)   # log 2
        0.6931
    """
    p, q = (np.asarray(each, dtype=np.float64) for each in (target, prediction))
    log_p, log_q = (np.log(np.maximum(each, SMALLEST)) for each in (p, q))
    return float((p * (log_p - log_q)).sum(axis=1).mean())


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's ρ: Pearson's correlation of ranks, ties sharing their mean rank; nan is left out pairwise.

    Args:
        first: [N], e.g. a teacher's probability of the label.
        second: [N], e.g. the student's, of the same samples.

    Returns:
        In [−1, 1]; nan where either is constant.

    Reference: Spearman 1904.
    """
    known = ~(np.isnan(first) | np.isnan(second))
    a, b = _ranks(first[known]), _ranks(second[known])
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Of the ranks of two values of the same samples."""

    rho: float
    """Spearman's, in [−1, 1]; nan where either is constant"""
    low: float
    """lower end of its 95 % interval; nan with fewer than 4 samples"""
    high: float
    num_samples: int
    """that have both values"""


def correlation(first: NDArray[Any], second: NDArray[Any]) -> Correlation:
    """`rank_correlation` with an interval: tanh(artanh ρ ± 1.96·√((1 + ρ²/2) / (n − 3))).

    Args:
        first: [N].
        second: [N], of the same samples.

    Reference: Bonett and Wright 2000, Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations, eq. 3.
    """
    n = int((~(np.isnan(first) | np.isnan(second))).sum())
    rho = rank_correlation(first, second) if n > 1 else math.nan
    if n < 4 or math.isnan(rho):
        return Correlation(rho=rho, low=math.nan, high=math.nan, num_samples=n)
    # At ±1 the interval has no width.
    if abs(rho) >= 1 - 1e-12:
        return Correlation(rho=rho, low=rho, high=rho, num_samples=n)
    half = NormalDist().inv_cdf(0.975) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(rho) + side * half) for side in (-1, 1))
    return Correlation(rho=rho, low=low, high=high, num_samples=n)


def rank_above(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Probability that a value of the first is above one of the second, ties counting half: the area under the ROC.

    Args:
        first: [n ≥ 1].
        second: [m ≥ 1].

    Example:
        >>> rank_above(np.array([2.0, 3.0]), np.array([1.0, 3.0]))   # of four pairs 2 above, 1 tied
        0.625

    Reference: Mann and Whitney 1947.
    """
    n, m = len(first), len(second)
    of_first = _ranks(np.concatenate([first, second]))[:n].sum()
    return float((of_first - n * (n + 1) / 2) / (n * m))


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    """From 1, ties sharing their mean, float64."""
    _, tie, size = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    ranks: NDArray[Any] = (last - (size - 1) / 2)[tie]
    return ranks


def mean_std(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, standard deviation over seeds (n − 1 below; nan for a single value), and n.

    Example:
        >>> mean_std([1.0, 2.0, 3.0])
        (2.0, 1.0, 3)
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), std, len(values)


def format_p(value: Any) -> str:
    """A p-value as it is printed: 0.03, or < 0.001."""
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"
