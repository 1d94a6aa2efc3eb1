"""The plots of training and evaluation: over epochs, over radii, by confidence and by class. Arms show their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustill.analysis.arms import Arm
from robustill.analysis.calibration import reliability
from robustill.analysis.runs import FinishedRun
from robustill.analysis.statistics import wilson_interval
from robustill.core.formatting import radius, shorten
from robustill.report.plots import (
    INK,
    MAX_COLOURED,
    MUTED,
    PAPER,
    Draw,
    epoch_axis,
    fill_band,
    legend_above,
    legend_label,
    percent_axis,
    percent_text,
    plot_series,
    series_colour,
    series_marker,
    share_limits,
)
from robustill.runs.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Numbered = tuple[int, Arm]
"""An arm with its number on the page, which gives its colour, dashes and marker."""

_DOTTED: Any = (0, (2, 2))
_TRAINING_LINES: tuple[tuple[str, str, str, Any], ...] = (
    ("validation, clean", "validation_clean_accuracy", MUTED, (0, (1, 1.4))),
    ("training, under attack", "train_adversarial_accuracy", INK, (0, (5, 2))),
    ("validation, under attack", "validation_robust_accuracy", "", "-"),
)


def draw_training_accuracy(run: FinishedRun, number: int, limits: tuple[float, float] | None = None) -> Draw:
    """Return a plot of one run's accuracy on training images under attack and on validation images, over the epochs.

    Args:
        run: the run.
        number: its number on the page.
        limits: the smallest and the largest accuracy on the axis, see `training_limits`.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for label, key, colour, dashes in _TRAINING_LINES:
            epochs, values = run.series(key)
            if epochs:
                marker = "o" if len(epochs) == 1 else None
                line_colour = colour or series_colour(number)
                axes.plot(epochs, values, label=label, color=line_colour, linestyle=dashes, marker=marker)
        _mark_best(axes, run, number, f"best, epoch {run.best_epoch}")
        percent_axis(axes, "accuracy", limits)
        epoch_axis(axes)
        legend_above(figure)

    return paint


def training_limits(runs: Sequence[FinishedRun]) -> tuple[float, float] | None:
    """Return the smallest and the largest accuracy in the training of several runs; None if there is none."""
    values = [value for run in runs for _, key, _, _ in _TRAINING_LINES for value in run.series(key)[1]]
    return (min(values), max(values)) if values else None


def mean_series(arm: Arm, key: str) -> tuple[list[int], list[float], list[float]]:
    """Return the epochs that all runs of an arm with this metric have, its mean over them and its deviation.

    The standard deviation is 0 for a single run.
    """
    series = [dict(zip(*run.series(key), strict=True)) for run in arm.runs]
    series = [each for each in series if each]
    if not series:
        return [], [], []
    epochs = sorted(set.intersection(*(set(each) for each in series)))
    values = np.array([[each[epoch] for epoch in epochs] for each in series])
    std = values.std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(epochs))
    return epochs, values.mean(axis=0).tolist(), std.tolist()


def draw_over_epochs(arms: Sequence[Arm], key: str, label: str, *, is_share: bool) -> Draw:
    """Return a plot of a metric of each arm over the epochs: the mean over its seeds, shaded by ± standard deviation.

    Args:
        arms: all arms; those after the first six are grey.
        key: the name of the metric.
        label: its name on the axis.
        is_share: whether it is a share, shown in percent. Its best epochs are marked then.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, arm in enumerate(arms):
            epochs, mean, std = mean_series(arm, key)
            if not epochs:
                continue
            if any(std):
                low, high = np.array(mean) - std, np.array(mean) + std
                fill_band(axes, epochs, low.tolist(), high.tolist(), number)
            plot_series(axes, epochs, mean, arm.name, number)
            if is_share and len(arm.runs) == 1 and number < MAX_COLOURED:
                _mark_best(axes, arm.runs[0], number)
        epoch_axis(axes)
        if is_share:
            percent_axis(axes, label)
        else:
            axes.margins(y=0.08)
            axes.set_ylabel(label)
        legend_above(figure)

    return paint


def best_validation_accuracy(run: FinishedRun) -> float | None:
    """Return the robust accuracy on validation images in the best epoch; None if it is not recorded."""
    return dict(zip(*run.series("validation_robust_accuracy"), strict=True)).get(run.best_epoch or 0)


def _mark_best(axes: Axes, run: FinishedRun, number: int, label: str | None = None) -> None:
    """Mark the best epoch, unless there is none or it was not validated; with a label it has a place in the legend."""
    value, epoch = best_validation_accuracy(run), run.best_epoch
    if epoch is not None and value is not None:
        colour, marker = series_colour(number), series_marker(number)
        style: dict[str, Any] = {"linestyle": "none", "markersize": 7, "markeredgecolor": PAPER, "zorder": 3}
        axes.plot([epoch], [value], marker=marker, color=colour, label=label, **style)


def draw_robustness_by_eps(arms: Sequence[Numbered], norm: str) -> Draw:
    """Return a plot of robust accuracy by radius, with 95 % intervals and the radii of the training."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        largest = 0.0
        for number, arm in arms:
            curve = eps_curve(arm)
            if curve is None:
                continue
            grid, share, low, high = curve
            largest = max(largest, grid[-1])
            fill_band(axes, grid, low, high, number)
            plot_series(axes, grid, share, arm.name, number, markers=True)
        trained = {run.eps for _, arm in arms for run in arm.runs if run.eps and run.get("threat.norm") == norm}
        _mark_radii(axes, sorted(each for each in trained if each <= largest), norm, largest)
        axes.set_xlabel(f"eps ({norm})")
        if radius(norm, largest).endswith("/255"):
            levels = np.unique(np.linspace(0, round(largest * 255), 5).round().astype(int))
            axes.set_xticks(levels / 255, [f"{level}/255" if level else "0" for level in levels])
        else:
            axes.locator_params(axis="x", nbins=5)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.set_xlim(0, largest * 1.02)
        percent_axis(axes, "robust accuracy")
        legend_above(figure)

    return paint


def _mark_radii(axes: Axes, radii: Sequence[float], norm: str, largest: float) -> None:
    """Mark the radii of training by vertical lines; their names stand below one another, towards the middle."""
    for position, eps in enumerate(radii):
        axes.axvline(eps, color=MUTED, linewidth=0.9, linestyle=_DOTTED)
        is_right = eps > 0.6 * largest
        axes.annotate(
            f"trained at {radius(norm, eps)}",
            (eps, 1.0),
            (-3 if is_right else 3, -2 - 11 * position),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            ha="right" if is_right else "left",
            color=MUTED,
        )


def eps_curve(arm: Arm) -> tuple[list[float], ...] | None:
    """Return the radii, the robust accuracy at each, and the ends of its 95 % interval over images.

    Of several seeds it is the mean, and the ends are one standard deviation below and above it. None if a run was not
    evaluated at several radii, or the runs at others.
    """
    curves = [_counts_by_eps(run.main.records) for run in arm.evaluated if run.main is not None]
    if not curves or any(curve is None for curve in curves):
        return None
    grids, counts, totals = zip(*(curve for curve in curves if curve is not None), strict=True)
    if any(not np.array_equal(grid, grids[0]) for grid in grids):
        return None
    shares = np.array([count / total for count, total in zip(counts, totals, strict=True)])
    mean = shares.mean(axis=0)
    if len(curves) == 1:
        low, high = np.array([wilson_interval(int(each), totals[0]) for each in counts[0]]).T
    else:
        std = shares.std(axis=0, ddof=1)
        low, high = np.clip([mean - std, mean + std], 0, 1)
    return grids[0].tolist(), mean.tolist(), low.tolist(), high.tolist()


def _counts_by_eps(records: Records) -> tuple[Any, Any, int] | None:
    """Return the radii, the number of robust images at each, and the number of images."""
    if not len(records.eps_grid):
        return None
    grid, correct = records.eps_grid, records.robust_at_eps.sum(axis=0)
    if grid[0] > 0:
        # At radius 0 robust accuracy is clean accuracy.
        grid, correct = np.append(0, grid), np.append(records.clean_correct.sum(), correct)
    return grid, correct, len(records)


def draw_reliability(probabilities: Any, labels: Any, number: int) -> Draw:
    """Return a reliability diagram: accuracy by confidence, and below it the share of images by confidence."""
    diagram = reliability(probabilities, labels)
    filled = diagram.count > 0
    centre, width = (diagram.edges[1:] + diagram.edges[:-1]) / 2, diagram.edges[1]

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, sharex=True, height_ratios=(4, 1.1))
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=_DOTTED)
        colour = series_colour(number)
        top.bar(centre[filled], diagram.accuracy[filled], width * 0.92, color=colour, alpha=0.22, linewidth=0)
        # The area of a point is proportional to its number of images, so that small bins look small.
        top.scatter(
            diagram.mean_confidence[filled],
            diagram.accuracy[filled],
            s=4 + 40 * diagram.count[filled] / diagram.count.max(),
            color=colour,
            marker=series_marker(number),
            linewidth=0,
            clip_on=False,
            zorder=3,
        )
        percent_axis(top, "accuracy", (0, 1))
        bottom.bar(centre, diagram.count / diagram.count.sum(), width * 0.92, color=colour, alpha=0.7)
        bottom.set_xlim(0, 1)
        bottom.locator_params(axis="y", nbins=3)
        bottom.set_ylabel("images")
        bottom.yaxis.set_major_formatter(percent_text)
        bottom.set_xlabel("confidence")
        bottom.xaxis.set_major_formatter(percent_text)

    return paint


def draw_class_robustness(arms: Sequence[Numbered]) -> Draw:
    """Return a plot of robust accuracy by class, with the hardest class of the first arm at the top."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        classes = arms[0][1].evaluated[0].main
        assert classes is not None
        order = np.argsort(robust_by_class(arms[0][1]))[::-1]
        for number, arm in arms:
            if number >= MAX_COLOURED:
                continue
            axes.plot(
                robust_by_class(arm)[order],
                range(len(order)),
                linestyle="none",
                marker=series_marker(number),
                color=series_colour(number),
                markersize=5,
                label=legend_label(arm.name),
            )
        axes.set_yticks(range(len(order)), [shorten(classes.records.classes[k], 14) for k in order])
        axes.set_xlim(*share_limits(*axes.dataLim.intervalx))
        axes.xaxis.set_major_formatter(percent_text)
        axes.set_xlabel("robust accuracy")
        legend_above(figure)

    return paint


def robust_by_class(arm: Arm) -> Any:
    """Compute the robust accuracy of each class, float64 [K], the mean over seeds; 0 for a class without images."""
    shares = []
    for run in arm.evaluated:
        assert run.main is not None
        records = run.main.records
        total = np.bincount(records.label, minlength=len(records.classes))
        robust = np.bincount(records.label, weights=records.robust, minlength=len(records.classes))
        shares.append(robust / np.maximum(total, 1))
    return np.mean(shares, axis=0)
