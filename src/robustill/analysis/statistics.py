"""Statistics of accuracies and scores: intervals, paired tests, rank correlations, detection, and agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.calibration import SMALLEST

SIGNIFICANCE_LEVEL = 0.05
"""A p-value below it tells a difference from noise."""

_RESAMPLES = 10_000
# Two seeds have an interval thirteen standard errors wide to each side, or none at all.
_DECIDING_SEEDS = 3


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion; unlike p ± 1.96·σ it stays in [0,1] and has a width at 0 and at n.

    Args:
        successes: 0 to n.
        n: at least 1.
        level: probability that such an interval contains the true proportion.

    Example:
        >>> low, high = wilson_interval(0, 10)      # 0 to z² / (n + z²)
        >>> round(low, 4), round(high, 4)
        (0.0, 0.2775)

    Reference: Wilson 1927.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # The ends are exactly 0 and 1 there; rounding may miss them by 1e-17.
    low = 0.0 if successes == 0 else centre - half_width
    high = 1.0 if successes == n else centre + half_width
    return low, high


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The difference of two proportions on the same images, first minus second."""

    difference: float
    low: float
    """lower end of the bootstrap 95 % interval"""
    high: float
    p_value: float
    """McNemar's exact test: probability of a split at least as uneven if neither is better"""
    only_first: int
    """images that only the first classifies correctly"""
    only_second: int
    num_images: int

    @property
    def significant(self) -> bool:
        """Whether both the test and the interval indicate a difference."""
        return self.p_value < SIGNIFICANCE_LEVEL and not self.low <= 0 <= self.high

    @property
    def sentence(self) -> str:
        """A sentence that says whether the difference can be told from noise."""
        difference, low, high = 100 * self.difference, 100 * self.low, 100 * self.high
        figures = (
            f"{difference:+.1f} points on {self.num_images} images, 95 % interval "
            f"{low:+.1f} to {high:+.1f}, McNemar p {format_p(self.p_value)}"
        ).replace("-", "−")
        if not self.significant:
            return f"The difference cannot be told from noise ({figures})."
        better = "first" if self.difference > 0 else "second"
        return f"The {better} is better ({figures})."


def paired_difference(flags_a: NDArray[np.bool_], flags_b: NDArray[np.bool_], seed: int = 0) -> PairedDifference:
    """Compare the accuracies of two models on the same images, with an interval and a test of the paired difference.

    The interval is the percentile bootstrap over images. It covers the choice of images, not of training seeds: two
    students of one method and different seeds may differ by more.

    Args:
        flags_a: bool [N], whether the first model is right, image by image.
        flags_b: bool [N], the second, on the same images in the same order.
        seed: seed of the bootstrap.

    Reference: McNemar 1947; Efron 1979.
    """
    from scipy.special import bdtr

    assert flags_a.shape == flags_b.shape
    assert flags_a.ndim == 1
    n = len(flags_a)
    only_first = int((flags_a & ~flags_b).sum())
    only_second = int((flags_b & ~flags_a).sum())
    discordant = only_first + only_second
    # A resample of images is a multinomial draw of three kinds: right only in a, only in b, no difference.
    shares = np.array([only_first, only_second, n - discordant]) / n
    resamples = np.random.default_rng(seed).multinomial(n, shares, size=_RESAMPLES)
    low, high = np.quantile((resamples[:, 0] - resamples[:, 1]) / n, [0.025, 0.975])
    return PairedDifference(
        difference=(only_first - only_second) / n,
        low=float(low),
        high=float(high),
        # Without a difference the split is binomial with 1/2, which is symmetric: both tails are equal.
        p_value=min(1.0, float(2 * bdtr(min(only_first, only_second), discordant, 0.5))) if discordant else 1.0,
        only_first=only_first,
        only_second=only_second,
        num_images=n,
    )


def agreement(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the share of images for which two models predict the same class, in [0,1].

    Args:
        first: probabilities, [N,K].
        second: [N,K], on the same images in the same order.

    Reference: top-1 agreement: Stanton et al. 2021, Does knowledge distillation really work?, eq. 3.
    """
    return float((first.argmax(axis=1) == second.argmax(axis=1)).mean())


def mean_kl(target: NDArray[Any], prediction: NDArray[Any]) -> float:
    """Return the mean over images of KL(target ‖ prediction) = Σ_k p_k·(log p_k − log q_k), in nats.

    Args:
        target: p, the teacher's probabilities, [N,K].
        prediction: q, the student's, [N,K]; clipped at SMALLEST.

    Example:
        >>> round(mean_kl(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]])), 4)   # log 2
        0.6931
    """
    p, q = (np.asarray(each, dtype=np.float64) for each in (target, prediction))
    log_p, log_q = (np.log(np.maximum(each, SMALLEST)) for each in (p, q))
    return float((p * (log_p - log_q)).sum(axis=1).mean())


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return Spearman's ρ: Pearson's correlation of the ranks, with ties at their mean rank.

    Args:
        first: [N], e.g. a teacher's probability of the label; a pair with a nan is left out.
        second: [N], e.g. the student's, of the same samples.

    Returns:
        In [−1, 1]; nan if either is constant.

    Reference: Spearman 1904.
    """
    valid = ~(np.isnan(first) | np.isnan(second))
    a, b = _ranks(first[valid]), _ranks(second[valid])
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Rank correlation of two values of the same samples."""

    rho: float
    """Spearman's, in [−1, 1]; nan if either is constant"""
    low: float
    """lower end of its 95 % interval; nan with fewer than 4 samples"""
    high: float
    num_samples: int
    """samples that have both values"""


def correlation(first: NDArray[Any], second: NDArray[Any]) -> Correlation:
    """Return `rank_correlation` with its interval tanh(artanh ρ ± 1.96·√((1 + ρ²/2) / (n − 3))).

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
    # At ±1 artanh is infinite and the interval has no width.
    if abs(rho) >= 1 - 1e-12:
        return Correlation(rho=rho, low=rho, high=rho, num_samples=n)
    half_width = NormalDist().inv_cdf(0.975) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    low = math.tanh(math.atanh(rho) - half_width)
    high = math.tanh(math.atanh(rho) + half_width)
    return Correlation(rho=rho, low=low, high=high, num_samples=n)


def rank_above(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the probability that a value of the first is above one of the second: the area under the ROC curve.

    Args:
        first: [n ≥ 1].
        second: [m ≥ 1]; ties count half.

    Example:
        >>> rank_above(np.array([2.0, 3.0]), np.array([1.0, 3.0]))   # of four pairs 2 above, 1 tied
        0.625

    Reference: Mann and Whitney 1947.
    """
    n, m = len(first), len(second)
    rank_sum = _ranks(np.concatenate([first, second]))[:n].sum()
    return float((rank_sum - n * (n + 1) / 2) / (n * m))


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score separates the flagged images from the others; theirs should be the higher scores."""

    auroc: float
    """probability that a flagged image has a higher score than another; 1/2 if the score does not separate them"""
    low: float
    """lower end of its 95 % interval (Hanley and McNeil)"""
    high: float
    average_precision: float
    """precision averaged over recall; the share of flagged images if the score does not separate them"""
    num_flagged: int
    num_samples: int
    """all images that have a score"""


def detection(score: NDArray[Any], flagged: NDArray[np.bool_]) -> Detection:
    """Return the area under the ROC curve with its interval, and the average precision.

    Args:
        score: [N]; nan is left out.
        flagged: bool [N].

    Returns:
        nan if no image or every one is flagged.

    Reference: the interval: Hanley and McNeil 1982, The meaning and use of the area under a ROC curve.
    """
    valid = ~np.isnan(score)
    score, flagged = score[valid], flagged[valid]
    n, m = int(flagged.sum()), int((~flagged).sum())
    if not n or not m:
        nan = math.nan
        return Detection(auroc=nan, low=nan, high=nan, average_precision=nan, num_flagged=n, num_samples=n + m)
    area = rank_above(score[flagged], score[~flagged])
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)) / (n * m)
    half_width = NormalDist().inv_cdf(0.975) * math.sqrt(max(0.0, variance))
    return Detection(
        auroc=area,
        low=max(0.0, area - half_width),
        high=min(1.0, area + half_width),
        average_precision=average_precision(score, flagged),
        num_flagged=n,
        num_samples=n + m,
    )


def average_precision(score: NDArray[Any], flagged: NDArray[np.bool_]) -> float:
    """Return Σ_t (recall_t − recall_{t−1})·precision_t over the thresholds t from the highest score down.

    Args:
        score: [N]; equal scores are one threshold.
        flagged: bool [N], at least one.

    Example:
        >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))   # (1/1 + 2/3) / 2
        0.8333333333333333
    """
    thresholds, threshold_of = np.unique(-score, return_inverse=True)
    hits = np.bincount(threshold_of, weights=flagged, minlength=len(thresholds))
    num_above = np.cumsum(np.bincount(threshold_of, minlength=len(thresholds)))
    return float((hits * np.cumsum(hits) / num_above).sum() / hits.sum())


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    """Return the ranks from 1, with ties at their mean rank, float64."""
    _, tie, size = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    ranks: NDArray[Any] = (last - (size - 1) / 2)[tie]
    return ranks


def mean_std(values: Sequence[float]) -> tuple[float, float, int]:
    """Return the mean, the standard deviation (n − 1 in the denominator; nan for a single value), and n.

    Example:
        >>> mean_std([1.0, 2.0, 3.0])
        (2.0, 1.0, 3)
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), std, len(values)


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of independent values by Student's t distribution; nan for a single value.

    Example:
        >>> low, high = student_interval([1.0, 2.0, 3.0])   # 2 ± 4.303 / √3
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    # scipy.stats has the same functions, and takes the better part of a second to import.
    from scipy.special import stdtrit

    mean, std, n = mean_std(values)
    half_width = float(stdtrit(n - 1, (1 + level) / 2)) * std / math.sqrt(n) if n > 1 else math.nan
    return mean - half_width, mean + half_width


@dataclass(frozen=True, kw_only=True)
class SeedDifference:
    """The difference of two rows, the first minus the second, paired by seed.

    Args:
        mean: mean over seeds.
        std: sample standard deviation over seeds (n − 1); nan for one seed.
        low: lower end of the 95 % interval of the mean; nan for one seed.
        high: upper end of that interval.
        p_value: the probability of a mean as far from 0 if the true mean is 0, after `corrected` that of the family;
            nan for one seed.
        num_seeds: number of seeds that both rows have.
    """

    mean: float
    std: float
    low: float
    high: float
    p_value: float
    num_seeds: int

    @property
    def is_decided(self) -> bool:
        """Whether it has a verdict: two seeds decide nothing, because their differences may be equal by chance."""
        return self.num_seeds >= _DECIDING_SEEDS

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "noise" (the p-value is 0.05 or more), "one seed" and "two seeds"."""
        if not self.is_decided:
            return "one seed" if self.num_seeds == 1 else "two seeds"
        if not self.p_value < SIGNIFICANCE_LEVEL:
            return "noise"
        return "better" if self.mean > 0 else "worse"


def paired_over_seeds(first: Sequence[float], second: Sequence[float]) -> SeedDifference:
    """Compute the mean of paired differences with its 95 % interval over seeds, by Student's t distribution.

    The interval says nothing of other images; accuracies have `paired_over_seeds_and_images`.

    Args:
        first: one value for each seed; larger is better.
        second: the values of the same seeds, in the same order.

    Example:
        >>> difference = paired_over_seeds([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
        >>> round(difference.mean, 3), difference.num_seeds, difference.verdict
        (0.1, 3, 'better')
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, std, n = mean_std(differences)
    return _seed_difference(mean, std, n, std**2 / n, n - 1)


def paired_over_seeds_and_images(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> SeedDifference:
    """Compare two accuracies over seeds whose test images are the same, with an interval for other seeds and images.

    With d_si = first_si − second_si of seed s of S and image i of N, the variance of the mean of d is
    (MS_seed + max(0, MS_image − MS_rest)) / (S·N), from the mean squares of the two-way analysis of variance:
    MS_seed = N·Σ_s (d_s − d)² / (S − 1), MS_image = S·Σ_i (d_i − d)² / (N − 1), and
    MS_rest = Σ_si (d_si − d_s − d_i + d)² / ((S − 1)·(N − 1)), where d_s, d_i and d are means. The interval and the
    p-value are those of Student's t distribution with Satterthwaite's degrees of freedom. If the images do not matter
    beyond chance, both are those of `paired_over_seeds`; the interval is never narrower than that over images alone,
    with the variance MS_image / (S·N).

    Args:
        first: whether the first is right, bool [S,N].
        second: the same for the second, of the same seeds and images in the same order.

    Reference: Satterthwaite 1946, An approximate distribution of estimates of variance components.

    Example:
        >>> first = np.array([[True, True, False, True], [True, True, True, False], [True, True, True, True]])
        >>> paired_over_seeds_and_images(first, np.zeros_like(first)).mean
        0.8333333333333334
    """
    assert first.shape == second.shape
    assert first.ndim == 2
    gaps = first.astype(np.float64) - second
    num_seeds, num_images = gaps.shape
    mean, std, _ = mean_std(gaps.mean(axis=1).tolist())
    if num_seeds == 1 or num_images == 1:
        return _seed_difference(mean, std, num_seeds, std**2 / num_seeds, num_seeds - 1)
    of_seeds = num_images * std**2
    of_images = num_seeds * float(gaps.mean(axis=0).var(ddof=1))
    residuals = gaps - gaps.mean(axis=1, keepdims=True) - gaps.mean(axis=0) + gaps.mean()
    freedom = {"seeds": num_seeds - 1, "images": num_images - 1, "rest": (num_seeds - 1) * (num_images - 1)}
    rest = float((residuals**2).sum()) / freedom["rest"]
    parts = {"seeds": of_seeds}
    if of_images > rest:
        parts |= {"images": of_images, "rest": -rest}
    total = sum(parts.values())
    degrees = total**2 / sum(part**2 / freedom[name] for name, part in parts.items()) if total else num_seeds - 1
    both = _seed_difference(mean, std, num_seeds, total / gaps.size, degrees)
    # Seeds that are equal by chance do not make the images certain.
    over_images = _seed_difference(mean, std, num_seeds, of_images / gaps.size, freedom["images"])
    return max(both, over_images, key=lambda each: each.high - each.low)


def _seed_difference(mean: float, std: float, num_seeds: int, variance: float, degrees: float) -> SeedDifference:
    """Return a difference with the interval and p-value of t, from the variance of its mean and that one's degrees."""
    # scipy.stats has the same functions, and takes the better part of a second to import.
    from scipy.special import stdtr, stdtrit

    if num_seeds == 1:
        nan = math.nan
        return SeedDifference(mean=mean, std=nan, low=nan, high=nan, p_value=nan, num_seeds=1)
    error = math.sqrt(variance)
    half_width = float(stdtrit(degrees, 0.975)) * error
    p_value = float(2 * stdtr(degrees, -abs(mean) / error)) if error else float(mean == 0)
    return SeedDifference(
        mean=mean, std=std, low=mean - half_width, high=mean + half_width, p_value=p_value, num_seeds=num_seeds
    )


def corrected(differences: Sequence[SeedDifference]) -> list[SeedDifference]:
    """Return the differences of one table with their p-values adjusted by `holm`; intervals stay as they are.

    Differences of fewer than three seeds get no verdict, and do not count.
    """
    adjusted = holm([each.p_value if each.is_decided else math.nan for each in differences])
    return [
        replace(each, p_value=p_value) if each.is_decided else each
        for each, p_value in zip(differences, adjusted, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several tests adjusted by Holm's method, which bounds the chance of any false finding.

    Args:
        p_values: nan for a difference that is not tested: it does not count, and stays nan.

    Example:
        >>> holm([0.01, 0.04, 0.03])    # 3·0.01, then 2·0.03, then the larger of that and 0.04
        [0.03, 0.06, 0.06]

    Reference: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    tested = [position for position, each in enumerate(p_values) if not math.isnan(each)]
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, position in enumerate(sorted(tested, key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def format_p(value: Any) -> str:
    """Return a p-value as it is printed: = 0.03, or < 0.001."""
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"
