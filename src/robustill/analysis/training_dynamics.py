"""What training did to each image, from what was recorded of it epoch by epoch.

A `Series` is one look, [E,N]: E epochs, N samples. Epochs in which a sample was not seen are left out of its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.statistics import rank_above, wilson_interval
from robustill.runs.dynamics import Dynamics, Series

Array = NDArray[Any]
LATE = 0.2
"""Share of the epochs that stand for the end of training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DataMap:
    """Where each sample lies, float64 [N]; nan for a sample that was never seen."""

    confidence: Array
    """mean probability of the label over the epochs"""
    variability: Array
    """its standard deviation over the epochs"""
    correctness: Array
    """share of the epochs in which the prediction is the label"""


def data_map(series: Series) -> DataMap:
    """Mean and spread over the epochs of the label's probability.

    μ_i = 1/E·Σ_e p_ei, σ_i = √(1/E·Σ_e (p_ei − μ_i)²), correctness_i = 1/E·Σ_e [prediction_ei = y_i].

    Args:
        series: of one look.

    Reference: Swayamdipta et al. 2020, Dataset cartography, section 2.1.
    """
    p, seen = series.probability.astype(np.float64), series.recorded
    mean = mean_seen(p, seen)
    return DataMap(
        confidence=mean,
        variability=np.sqrt(mean_seen(np.square(p - mean), seen)),
        correctness=mean_seen(series.correct, seen),
    )


def epoch_learned(series: Series) -> Array:
    """The first epoch from which on a sample is right to the end, float64 [N]; nan for one that is wrong at the end.

    Args:
        series: of one look.

    Returns:
        Epochs, counted from 1.

    Reference: Baldock et al. 2021, Deep learning through the lens of example difficulty, section 2 (iteration learned).
    """
    wrong = series.recorded & ~series.correct
    # Looks up to and including the last in which it is wrong do not count.
    settled = ~np.logical_or.accumulate(wrong[::-1])[::-1] & series.recorded
    first = settled.argmax(axis=0)
    return np.where(settled.any(axis=0), series.epochs[first], np.nan).astype(np.float64)


def forgetting_events(series: Series) -> Array:
    """How often a sample is right in one look and wrong in the next, int [N].

    Σ_e [correct_e and not correct_e+1]. A sample that was never right has none, though it was never learned.

    Args:
        series: of one look.

    Reference: Toneva et al. 2019, An empirical study of example forgetting, definition 2.1.
    """
    E, N = series.correct.shape
    # Where a sample was not seen, its last look stands.
    latest = np.maximum.accumulate(np.where(series.recorded, np.arange(E)[:, None], -1), axis=0)
    held = series.correct[latest, np.arange(N)] & (latest >= 0)
    events: Array = (held[:-1] & ~held[1:]).sum(axis=0)
    return events


def area_under_margin(series: Series) -> Array:
    """Mean over the epochs of the label's logit minus the best other, float64 [N]; low for a label that is wrong.

    Args:
        series: of one look.

    Reference: Pleiss et al. 2020, Identifying mislabeled data using the area under the margin ranking, eq. 2.
    """
    return mean_seen(series.margin, series.recorded)


def memorisation_proxy(series: Series, late: float = LATE) -> Array:
    """How much surer of its label the model is at the end than it was all along: p̄ over the last epochs − p̄ over all.

    What is learned from others is known early, what is learned by heart late. It costs no training, and orders samples
    only roughly as the influence of leaving them out does. Read it among samples that are `learned`: one that never is
    has a value near 0, whatever it would take to hold it.

    Args:
        series: of one look.
        late: share of the epochs that are the end.

    Returns:
        float64 [N], in (−1, 1).

    Reference: the quantity it stands for: Feldman and Zhang 2020, eq. 1; mean confidence over training as the best
    cheap proxy of it: Jiang et al. 2021, Characterizing structural regularities, section 5.
    """
    end = last_epochs(series, late)
    return mean_seen(end.probability, end.recorded) - mean_seen(series.probability, series.recorded)


def last_epochs(series: Series, share: float = LATE) -> Series:
    """The looks of the last epochs, ⌈share·E⌉ of them."""
    count = int(np.ceil(share * len(series.epochs)))
    return Series(
        epochs=series.epochs[-count:],
        loss=series.loss[-count:],
        margin=series.margin[-count:],
        correct=series.correct[-count:],
    )


def learned(series: Series, late: float = LATE) -> Array:
    """Whether a sample is right in at least half of the last epochs, bool [N]."""
    end = last_epochs(series, late)
    # The mean of a sample that was not seen is nan, and no more than one half.
    known: Array = mean_seen(end.correct, end.recorded) >= 0.5
    return known


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """From a baseline to a student, sample by sample; maps and flags are in the order of `ids`."""

    ids: Array
    """int64 [n], samples that both were trained on with the same label"""
    baseline: DataMap
    student: DataMap
    learned_baseline: Array
    """bool [n]"""
    learned_student: Array

    @property
    def confidence(self) -> Array:
        """Student minus baseline."""
        change: Array = self.student.confidence - self.baseline.confidence
        return change

    @property
    def variability(self) -> Array:
        """Student minus baseline."""
        change: Array = self.student.variability - self.baseline.variability
        return change

    @property
    def outcomes(self) -> dict[str, int]:
        """How many samples are learned by both, by the student only, by the baseline only, by neither."""
        a, b = self.learned_student, self.learned_baseline
        return {
            "both": int((a & b).sum()),
            "only_student": int((a & ~b).sum()),
            "only_baseline": int((~a & b).sum()),
            "neither": int((~a & ~b).sum()),
        }


def shift(baseline: Dynamics, student: Dynamics) -> Shift:
    """What changes for each sample when the student is trained in place of the baseline.

    Both are read off what they were trained on: adversarial images, each its own.

    Args:
        baseline: of a run without the teacher.
        student: of a run with it.
    """
    ids, a, b = np.intersect1d(baseline.ids, student.ids, assume_unique=True, return_indices=True)
    same = baseline.labels[a] == student.labels[b]
    ids, a, b = ids[same], a[same], b[same]
    first, second = baseline.student.part(a), student.student.part(b)
    return Shift(
        ids=ids,
        baseline=data_map(first),
        student=data_map(second),
        learned_baseline=learned(first),
        learned_student=learned(second),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Overfitting:
    """Robust accuracy on training and on held-out images, over the epochs in which both were measured."""

    epochs: Array
    train: Array
    held_out: Array

    @property
    def gap(self) -> Array:
        """Train minus held out."""
        gap: Array = self.train - self.held_out
        return gap

    @property
    def drop(self) -> float:
        """Held out, its best epoch minus its last: what training on has cost."""
        return float(self.held_out.max() - self.held_out[-1])


def robust_overfitting(metrics: Sequence[Mapping[str, Any]]) -> Overfitting | None:
    """How far robust accuracy on training images runs away from that on held-out ones.

    The two attacks differ (that of training, on a network that still changes, and PGD on held-out images), so their
    level is not the same at the start; what tells is how the gap grows.

    Args:
        metrics: the lines of a run.

    Returns:
        None where no epoch has both.

    Reference: Rice et al. 2020, Overfitting in adversarially robust deep learning.
    """
    keys = ("epoch", "train_adversarial_accuracy", "validation_robust_accuracy")
    rows = [[line[key] for key in keys] for line in metrics if all(key in line for key in keys)]
    if not rows:
        return None
    epochs, train, held_out = np.array(rows, dtype=np.float64).T
    return Overfitting(epochs=epochs.astype(np.int64), train=train, held_out=held_out)


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseMemorised:
    """How much of the flipped labels a run has learned by heart."""

    epochs: Array
    flipped: Array
    """[E], share of the flipped samples whose prediction is the wrong label they were given"""
    others: Array
    """[E], share of the other samples whose prediction is their label"""
    num_flipped: int
    final: float
    """share of the flipped samples that are learned at the end"""
    interval: tuple[float, float]
    """its 95 % interval (Wilson)"""
    separation: float
    """probability that a flipped sample has a smaller area under the margin than another: 1/2 if nothing tells them"""


def noise_memorised(dynamics: Dynamics, look: str = "student") -> NoiseMemorised | None:
    """Predictions that are the wrong label a sample was given: nothing but memory can bring them above chance.

    Args:
        dynamics: of a run with data.label_noise.
        look: "student" (adversarial images, where there was an adversary), "adversarial" or "clean".

    Returns:
        None where the look was taken of no flipped sample, or of no other. Samples never seen do not count.

    Reference: the experiment: Arpit et al. 2017, A closer look at memorization in deep networks.
    """
    series: Series | None = getattr(dynamics, look)
    flipped = dynamics.flipped
    if series is None:
        return None
    ever = series.recorded.any(axis=0)
    flipped, others = flipped & ever, ~flipped & ever
    if not (flipped.any() and others.any()):
        return None
    known = learned(series.part(flipped))
    area = area_under_margin(series)
    return NoiseMemorised(
        epochs=series.epochs,
        flipped=mean_seen(series.correct[:, flipped].T, series.recorded[:, flipped].T),
        others=mean_seen(series.correct[:, others].T, series.recorded[:, others].T),
        num_flipped=int(flipped.sum()),
        final=float(known.mean()),
        interval=wilson_interval(int(known.sum()), len(known)),
        separation=rank_above(area[others], area[flipped]),
    )


def mean_seen(values: Array, seen: Array) -> Array:
    """Over axis 0, of what was seen, in float64; nan where nothing was."""
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(seen, values, 0).sum(axis=0, dtype=np.float64) / seen.sum(axis=0)
    return mean
