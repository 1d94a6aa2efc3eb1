"""Difficulty of single images: bins from a reference run, and scores from training dynamics and from evaluations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.calibration import SMALLEST
from robustill.analysis.training_dynamics import (
    area_under_margin,
    data_map,
    epoch_learned,
    forgetting_events,
    last_epochs,
    masked_mean,
    memorisation_proxy,
)
from robustill.runs.dynamics import Dynamics, Series
from robustill.runs.records import Records

Array = NDArray[Any]
BINS = ("easy", "ambiguous", "hard", "unlearnable")
"""Bins of difficulty; their position is their code."""

RADIUS_BINS = (
    "wrong without attack",
    "broken at half the radius",
    "broken at the radius",
    "broken at a larger radius",
    "never broken",
)
"""Bins of difficulty under attack; their position is their code."""


def difficulty(series: Series, *, unlearnable: float = 0.1, ambiguous: float = 1 / 3) -> Array:
    """Return a bin for each sample, from the data map of a reference run under attack: its code in BINS, int8 [N].

    A sample is unlearnable if it is correct in less than a share `unlearnable` of the epochs. Of the others, the share
    `ambiguous` with the highest variability is ambiguous. Of the rest, a sample is easy if the mean probability of its
    label is at least 1/2, otherwise hard.

    Compare two runs by the bins of one of them, the baseline: otherwise the bins change with what is compared.

    Args:
        series: records of the reference run.
        unlearnable: in [0,1].
        ambiguous: in [0,1].

    Reference: regions of the map: Swayamdipta et al. 2020; a bin for the robustly unlearnable samples is our choice.
    """
    mapped = data_map(series)
    # Written so that nan counts as unlearnable.
    is_unlearnable = ~(mapped.correctness >= unlearnable)
    learnable = np.flatnonzero(~is_unlearnable)
    bins = np.where(mapped.confidence >= 0.5, BINS.index("easy"), BINS.index("hard")).astype(np.int8)
    by_variability = learnable[np.argsort(-mapped.variability[learnable], kind="stable")]
    num_ambiguous = round(ambiguous * len(learnable))
    bins[by_variability[:num_ambiguous]] = BINS.index("ambiguous")
    bins[is_unlearnable] = BINS.index("unlearnable")
    return bins


def accuracy_by_bin(series: Series, bins: Array) -> Array:
    """Return the accuracy of each bin's samples, epoch by epoch, float64 [len(BINS), E]; nan for an empty bin."""
    curves = []
    for code in range(len(BINS)):
        members = bins == code
        curves.append(masked_mean(series.correct[:, members].T, series.recorded[:, members].T))
    return np.stack(curves)


def sample_metrics(dynamics: Dynamics) -> dict[str, Array]:
    """Return every metric that a run's dynamics give of each sample, by name, each float64 [N].

    For each kind of records, such as "adversarial": KIND_probability, KIND_loss, KIND_margin and KIND_correct at the
    end (means over the last epochs), KIND_mean_probability and KIND_variability over all epochs. Of the student also
    epoch_learned, forgetting, area_under_margin and memorisation; and flipped.
    """
    metrics: dict[str, Array] = {"flipped": dynamics.flipped.astype(np.float64)}
    for kind in ("adversarial", "clean", "teacher_adversarial", "teacher_clean"):
        series: Series | None = getattr(dynamics, kind)
        if series is None:
            continue
        end, mapped = last_epochs(series), data_map(series)
        for name in ("probability", "loss", "margin", "correct"):
            metrics[f"{kind}_{name}"] = masked_mean(getattr(end, name), end.recorded)
        metrics[f"{kind}_mean_probability"] = mapped.confidence
        metrics[f"{kind}_variability"] = mapped.variability
    metrics["epoch_learned"] = epoch_learned(dynamics.student)
    metrics["forgetting"] = forgetting_events(dynamics.student).astype(np.float64)
    metrics["area_under_margin"] = area_under_margin(dynamics.student)
    metrics["memorisation"] = memorisation_proxy(dynamics.student)
    return metrics


def breaking_radius(records: Records) -> Array:
    """Return the smallest measured radius at which an image is not robust, float64 [N].

    Args:
        records: of an evaluation; without a curve over radii, the radius of its threat is the only one.

    Returns:
        In the units of the threat: 0 if the image is wrong without an attack, inf if it is robust at every radius.
    """
    grid, robust = records.eps_grid.astype(np.float64), records.robust_at_eps
    if not len(grid):
        grid, robust = np.array([records.conditions["threat"]["eps"]], dtype=np.float64), records.robust[:, None]
    radii = np.append(grid, np.inf)
    broken = np.concatenate([~robust, np.ones((len(robust), 1), dtype=np.bool_)], axis=1)
    smallest = radii[broken.argmax(axis=1)]
    return np.where(records.clean_correct, smallest, 0.0)


def radius_bins(records: Records) -> Array:
    """Return a bin for each image of a reference's evaluation by `breaking_radius`: its code in RADIUS_BINS, int8 [N].

    Without a curve over radii only the first, the third and the last bin occur.

    Args:
        records: with the radius of their threat among the conditions.
    """
    # The radii of the grid are float32.
    eps = records.conditions["threat"]["eps"] * (1 + 1e-6)
    edges = np.array([0.0, eps / 2, eps, np.finfo(np.float64).max])
    bins: Array = np.searchsorted(edges, breaking_radius(records))
    return bins.astype(np.int8)


# Metrics of `sample_metrics`, with the sign that makes larger harder, and what the score is called.
_TRAINING_SCORES = {
    "adversarial_mean_probability": (-1, "mean confidence, attacked"),
    "clean_mean_probability": (-1, "mean confidence, clean"),
    "adversarial_variability": (1, "variability, attacked"),
    "area_under_margin": (-1, "area under the margin"),
    "forgetting": (1, "forgetting events"),
    "memorisation": (1, "rise of confidence"),
    "teacher_adversarial_mean_probability": (-1, "teacher's mean confidence, attacked"),
    "teacher_clean_mean_probability": (-1, "teacher's mean confidence, clean"),
}


def training_hardness(dynamics: Dynamics) -> dict[str, Array]:
    """Return the scores of hardness that a run's dynamics give of each sample, each float64 [N]; larger is harder."""
    metrics = sample_metrics(dynamics)
    scores = {name: sign * metrics[key] for key, (sign, name) in _TRAINING_SCORES.items() if key in metrics}
    # A sample that is never learned is harder than any that is.
    scores["epoch of learning"] = np.nan_to_num(metrics["epoch_learned"], nan=np.inf)
    return scores


def evaluation_hardness(records: Records) -> dict[str, Array]:
    """Return the scores of hardness that an evaluation gives of each image, each float64 [N]; larger is harder."""
    rows = np.arange(len(records))
    clean = records.clean_probabilities.astype(np.float64)
    adversarial = records.adversarial_probabilities.astype(np.float64)
    return {
        "confidence in the label, clean": -clean[rows, records.label],
        "confidence in the label, attacked": -adversarial[rows, records.label],
        "entropy of the prediction, clean": -(clean * np.log(np.maximum(clean, SMALLEST))).sum(axis=1),
        "margin, attacked": -records.margin.astype(np.float64),
        "radius that breaks it": -breaking_radius(records),
    }
