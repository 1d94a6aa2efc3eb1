"""Bins of difficulty from the data map of a reference run, and every number by bin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.analysis.calibration import SMALLEST
from robustill.analysis.training_dynamics import (
    LATE,
    area_under_margin,
    data_map,
    epoch_learned,
    forgetting_events,
    last_epochs,
    mean_seen,
    memorisation_proxy,
)
from robustill.runs.dynamics import Dynamics, Series
from robustill.runs.records import Records

Array = NDArray[Any]
BINS = ("easy", "ambiguous", "hard", "unlearnable")
"""Of difficulty, by their code."""


def difficulty(series: Series, *, unlearnable: float = 0.1, ambiguous: float = 1 / 3) -> Array:
    """A bin for each sample, from the data map of a reference run under attack: its code in BINS, int8 [N].

    unlearnable: right in less than a share `unlearnable` of the epochs. Of the others, ambiguous: the share `ambiguous`
    with the highest variability. Of the rest, easy: mean probability of the label at least 1/2; hard: below it.

    Compare two runs by the bins of one of them (the baseline), or the bins move with what is compared.

    Args:
        series: of one look, of a reference run.
        unlearnable: in [0,1].
        ambiguous: in [0,1].

    Reference: regions of the map: Swayamdipta et al. 2020; the robustly unlearnable ones apart: our choice.
    """
    found = data_map(series)
    never = ~(found.correctness >= unlearnable)
    others = np.flatnonzero(~never)
    bins = np.where(found.confidence >= 0.5, BINS.index("easy"), BINS.index("hard")).astype(np.int8)
    spread = others[np.argsort(-found.variability[others], kind="stable")]
    bins[spread[: round(ambiguous * len(others))]] = BINS.index("ambiguous")
    bins[never] = BINS.index("unlearnable")
    return bins


def by_bin(bins: Array, values: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """The mean of each value over the samples of each bin, and how many there are.

    Args:
        bins: codes, int [N].
        values: by name, each [N]; nan is left out.

    Returns:
        {bin: {"samples": n, name: mean ...}}, in the order of BINS; nan where nothing is to be averaged.

    Example:
        >>> by_bin(np.array([0, 0, 2]), {"x": np.array([1.0, 2.0, 5.0])})["easy"]
        {'samples': 2.0, 'x': 1.5}
    """
    table: dict[str, dict[str, float]] = {}
    for code, name in enumerate(BINS):
        members = bins == code
        table[name] = {"samples": float(members.sum())}
        for key, value in values.items():
            column = np.asarray(value, dtype=np.float64)[members]
            table[name][key] = float(mean_seen(column[:, None], ~np.isnan(column[:, None]))[0])
    return table


def sample_metrics(dynamics: Dynamics, late: float = LATE) -> dict[str, Array]:
    """Every metric that the records give of a sample, each float64 [N], for `by_bin` or a table.

    For each look that was taken, named LOOK_…: probability, loss, margin and correct at the end (means over the last
    epochs), mean_probability and variability over all of them. Of the student also epoch_learned, forgetting,
    area_under_margin and memorisation; and flipped.

    Args:
        dynamics: of one run.
        late: share of the epochs that are the end.
    """
    metrics: dict[str, Array] = {"flipped": dynamics.flipped.astype(np.float64)}
    looks = {"adversarial": dynamics.adversarial, "clean": dynamics.clean}
    looks |= {"teacher_adversarial": dynamics.teacher_adversarial, "teacher_clean": dynamics.teacher_clean}
    for look, series in looks.items():
        if series is None:
            continue
        end, found = last_epochs(series, late), data_map(series)
        for name in ("probability", "loss", "margin", "correct"):
            metrics[f"{look}_{name}"] = mean_seen(getattr(end, name), end.seen)
        metrics[f"{look}_mean_probability"] = found.confidence
        metrics[f"{look}_variability"] = found.variability
    metrics["epoch_learned"] = epoch_learned(dynamics.student)
    metrics["forgetting"] = forgetting_events(dynamics.student).astype(np.float64)
    metrics["area_under_margin"] = area_under_margin(dynamics.student)
    metrics["memorisation"] = memorisation_proxy(dynamics.student, late)
    return metrics


def breaking_radius(records: Records) -> Array:
    """The smallest measured radius at which an image is not robust: 0 if wrong without an attack, inf if at none.

    Args:
        records: of an evaluation; without a curve over radii, that of its threat is the only one.

    Returns:
        In the units of the threat, float64 [N].
    """
    grid, held = records.eps_grid.astype(np.float64), records.robust_at_eps
    if not len(grid):
        grid, held = np.array([records.conditions["threat"]["eps"]], dtype=np.float64), records.robust[:, None]
    first = np.append(grid, np.inf)[(~np.c_[held, np.zeros(len(held), dtype=np.bool_)]).argmax(axis=1)]
    return np.where(records.clean_correct, first, 0.0)


RADIUS_BINS = (
    "wrong without attack",
    "broken at half the radius",
    "broken at the radius",
    "broken at a larger radius",
    "never broken",
)
"""Of difficulty under attack, by their code."""


def radius_bins(records: Records) -> Array:
    """A bin for each image by `breaking_radius`, of a reference's evaluation: its code in RADIUS_BINS, int8 [N].

    Without a curve over radii only the first, the third and the last occur.

    Args:
        records: with the radius of their threat among the conditions.
    """
    # Radii are kept in float32.
    eps = records.conditions["threat"]["eps"] * (1 + 1e-6)
    bins: Array = np.searchsorted(np.array([0.0, eps / 2, eps, np.finfo(np.float64).max]), breaking_radius(records))
    return bins.astype(np.int8)


def training_hardness(dynamics: Dynamics) -> dict[str, Array]:
    """What a run's records say of how hard each sample is, each float64 [N], turned so that larger is harder.

    Args:
        dynamics: of one run.
    """
    metrics = sample_metrics(dynamics)
    found = {words: sign * metrics[name] for name, (sign, words) in _HARDER.items() if name in metrics}
    # One that is never learned is harder than all that are.
    found["epoch of learning"] = np.nan_to_num(metrics["epoch_learned"], nan=np.inf)
    return found


_HARDER = {
    "adversarial_mean_probability": (-1, "mean confidence, attacked"),
    "clean_mean_probability": (-1, "mean confidence, clean"),
    "adversarial_variability": (1, "variability, attacked"),
    "area_under_margin": (-1, "area under the margin"),
    "forgetting": (1, "forgetting events"),
    "memorisation": (1, "rise of confidence"),
    "teacher_adversarial_mean_probability": (-1, "teacher's mean confidence, attacked"),
    "teacher_clean_mean_probability": (-1, "teacher's mean confidence, clean"),
}


def evaluation_hardness(records: Records) -> dict[str, Array]:
    """What an evaluation says of how hard each image is, each float64 [N], turned so that larger is harder.

    Args:
        records: one row an image.
    """
    rows = np.arange(len(records))
    clean, attacked = (
        each.astype(np.float64) for each in (records.clean_probabilities, records.adversarial_probabilities)
    )
    return {
        "confidence in the label, clean": -clean[rows, records.label],
        "confidence in the label, attacked": -attacked[rows, records.label],
        "entropy of the prediction, clean": -(clean * np.log(np.maximum(clean, SMALLEST))).sum(axis=1),
        "margin, attacked": -records.margin.astype(np.float64),
        "radius that breaks it": -breaking_radius(records),
    }


def accuracy_by_bin(series: Series, bins: Array) -> Array:
    """Share of each bin's samples that are right, epoch by epoch, float64 [len(BINS), E]; nan for an empty bin."""
    return np.stack(
        [mean_seen(series.correct[:, bins == k].T, series.seen[:, bins == k].T) for k, _ in enumerate(BINS)]
    )
