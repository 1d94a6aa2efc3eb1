"""Whether a difference can be told from noise: intervals and paired tests on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
