"""Training dynamics: what training did to each image, computed from what the run recorded of it in every epoch.

A `Series` holds the records of E epochs and N samples, [E,N], taken on one kind of images, such as adversarial ones.
Epochs in which a sample was not recorded are left out of its numbers.
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
END_SHARE = 0.2
"""The last share of the epochs that stands for the end of training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DataMap:
    """Mean and spread of each sample's confidence over the epochs, float64 [N]; nan for a sample never recorded."""

    confidence: Array
    """mean probability of the label over the epochs"""
    variability: Array
    """The standard deviation of the confidence over the epochs."""
    correctness: Array
    """share of the epochs in which the prediction is the label"""


def data_map(series: Series) -> DataMap:
    """Return the mean and the standard deviation over the epochs of the label's probability.

    μ_i = 1/E·Σ_e p_ei, σ_i = √(1/E·Σ_e (p_ei − μ_i)²), correctness_i = 1/E·Σ_e [prediction_ei = y_i].

    Reference: Swayamdipta et al. 2020, Dataset cartography, section 2.1.
    """
    p, recorded = series.probability.astype(np.float64), series.recorded
    mean = masked_mean(p, recorded)
    return DataMap(
        confidence=mean,
        variability=np.sqrt(masked_mean(np.square(p - mean), recorded)),
        correctness=masked_mean(series.correct, recorded),
    )


def epoch_learned(series: Series) -> Array:
    """Return the first epoch from which on a sample is classified correctly to the end of training.

    Returns:
        float64 [N], epochs counted from 1; nan for a sample that is wrong at the end.

    Reference: Baldock et al. 2021, Deep learning through the lens of example difficulty, section 2 (iteration learned).
    """
    wrong = series.recorded & ~series.correct
    # The epochs up to and including the last in which it is wrong do not count.
    wrong_later = np.logical_or.accumulate(wrong[::-1])[::-1]
    settled = ~wrong_later & series.recorded
    first = settled.argmax(axis=0)
    return np.where(settled.any(axis=0), series.epochs[first], np.nan).astype(np.float64)


def forgetting_events(series: Series) -> Array:
    """Return how often each sample is correct in one recorded epoch and wrong in the next, int [N].

    Σ_e [correct_e and not correct_e+1]. A sample that was never correct has none, although it was never learned.

    Reference: Toneva et al. 2019, An empirical study of example forgetting, definition 2.1.
    """
    E, N = series.correct.shape
    # In an epoch without a record the last record before it stands.
    latest = np.maximum.accumulate(np.where(series.recorded, np.arange(E)[:, None], -1), axis=0)
    correct = series.correct[latest, np.arange(N)] & (latest >= 0)
    events: Array = (correct[:-1] & ~correct[1:]).sum(axis=0)
    return events


def area_under_margin(series: Series) -> Array:
    """Return the mean over the epochs of the label's logit minus the best other logit, float64 [N].

    It is low for a label that is wrong.

    Reference: Pleiss et al. 2020, Identifying mislabeled data using the area under the margin ranking, eq. 2.
    """
    return masked_mean(series.margin, series.recorded)


def memorisation_proxy(series: Series) -> Array:
    """Return the mean probability of the label over the last epochs minus that over all epochs, float64 [N] in (−1, 1).

    Samples that the model can learn from others become confident early, memorised ones late. The proxy needs no further
    training, and orders samples only roughly as the influence of leaving them out does. Use it only among samples that
    are learned, see `is_learned`: one that never is has a value near 0, however hard it is to memorise.

    Reference: the quantity it approximates: Feldman and Zhang 2020, eq. 1; mean confidence over training as the best
    cheap proxy of it: Jiang et al. 2021, Characterizing structural regularities, section 5.
    """
    end = last_epochs(series)
    return masked_mean(end.probability, end.recorded) - masked_mean(series.probability, series.recorded)


def last_epochs(series: Series) -> Series:
    """Return the records of the last ⌈END_SHARE·E⌉ epochs."""
    count = int(np.ceil(END_SHARE * len(series.epochs)))
    return Series(
        epochs=series.epochs[-count:],
        loss=series.loss[-count:],
        margin=series.margin[-count:],
        correct=series.correct[-count:],
    )


def is_learned(series: Series) -> Array:
    """Return whether a sample is correct in at least half of the last epochs, bool [N]."""
    end = last_epochs(series)
    # The mean of a sample without records is nan, which is not at least 0.5.
    result: Array = masked_mean(end.correct, end.recorded) >= 0.5
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedComparison:
    """Which samples a student and a baseline have learned at the end of training."""

    ids: Array
    """int64 [n], samples that both were trained on with the same label"""
    baseline: Array
    """bool [n], learned by the baseline"""
    student: Array
    """bool [n], learned by the student"""

    @property
    def outcomes(self) -> dict[str, int]:
        """How many samples are learned by both, by the student only, by the baseline only, by neither."""
        return {
            "both": int((self.student & self.baseline).sum()),
            "only_student": int((self.student & ~self.baseline).sum()),
            "only_baseline": int((~self.student & self.baseline).sum()),
            "neither": int((~self.student & ~self.baseline).sum()),
        }


def compare_learned(baseline: Dynamics, student: Dynamics) -> LearnedComparison:
    """Compare which samples two runs have learned, each on the adversarial images that it was trained on.

    Args:
        baseline: dynamics of a run without the teacher.
        student: dynamics of a run with it.
    """
    ids, a, b = np.intersect1d(baseline.ids, student.ids, assume_unique=True, return_indices=True)
    same_label = baseline.labels[a] == student.labels[b]
    ids, a, b = ids[same_label], a[same_label], b[same_label]
    return LearnedComparison(
        ids=ids,
        baseline=is_learned(baseline.student.part(a)),
        student=is_learned(student.student.part(b)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Overfitting:
    """Robust accuracy on training and on validation images, over the epochs in which both were measured, [E]."""

    epochs: Array
    train: Array
    validation: Array

    @property
    def gap(self) -> Array:
        """Training minus validation accuracy."""
        gap: Array = self.train - self.validation
        return gap

    @property
    def drop(self) -> float:
        """Validation accuracy of the best epoch minus that of the last: what training longer has cost."""
        return float(self.validation.max() - self.validation[-1])


def robust_overfitting(metrics: Sequence[Mapping[str, Any]]) -> Overfitting | None:
    """Return the robust accuracy on training and on validation images, epoch by epoch.

    The two attacks differ: that of training, on a network that still changes, and PGD on the validation images. So the
    levels differ from the start; overfitting shows in the growth of the gap.

    Args:
        metrics: the lines of metrics.jsonl.

    Returns:
        None if no epoch has both.

    Reference: Rice et al. 2020, Overfitting in adversarially robust deep learning.
    """
    keys = ("epoch", "train_adversarial_accuracy", "validation_robust_accuracy")
    rows = [[line[key] for key in keys] for line in metrics if all(key in line for key in keys)]
    if not rows:
        return None
    epochs, train, validation = np.array(rows, dtype=np.float64).T
    return Overfitting(epochs=epochs.astype(np.int64), train=train, validation=validation)


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseMemorisation:
    """How much of the flipped labels a run has memorised."""

    epochs: Array
    flipped: Array
    """[E], share of the flipped samples whose prediction is the wrong label they were given"""
    others: Array
    """[E], share of the other samples whose prediction is their label"""
    num_flipped: int
    final: float
    """share of the flipped samples that are learned at the end"""
    interval: tuple[float, float]
    """The 95 % interval of that share (Wilson)."""
    separation: float
    """probability that a flipped sample has a smaller area under the margin than another; 1/2 if they do not differ"""


def noise_memorisation(dynamics: Dynamics, kind: str = "student") -> NoiseMemorisation | None:
    """Measure how often the prediction is the wrong label a sample was given, which only memorisation can explain.

    Args:
        dynamics: dynamics of a run with data.label_noise.
        kind: the records to use: "student" (adversarial images, if there was an adversary), "adversarial" or "clean".

    Returns:
        None if there are no such records of any flipped sample, or of any other. Samples never recorded do not count.

    Reference: the experiment: Arpit et al. 2017, A closer look at memorization in deep networks.
    """
    series: Series | None = getattr(dynamics, kind)
    if series is None:
        return None
    recorded = series.recorded.any(axis=0)
    flipped, others = dynamics.flipped & recorded, ~dynamics.flipped & recorded
    if not (flipped.any() and others.any()):
        return None
    memorised = is_learned(series.part(flipped))
    area = area_under_margin(series)
    return NoiseMemorisation(
        epochs=series.epochs,
        flipped=masked_mean(series.correct[:, flipped].T, series.recorded[:, flipped].T),
        others=masked_mean(series.correct[:, others].T, series.recorded[:, others].T),
        num_flipped=int(flipped.sum()),
        final=float(memorised.mean()),
        interval=wilson_interval(int(memorised.sum()), len(memorised)),
        separation=rank_above(area[others], area[flipped]),
    )


def masked_mean(values: Array, mask: Array) -> Array:
    """Return the mean over axis 0 of the values where the mask is True, in float64; nan where it never is."""
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(mask, values, 0).sum(axis=0, dtype=np.float64) / mask.sum(axis=0)
    return mean
