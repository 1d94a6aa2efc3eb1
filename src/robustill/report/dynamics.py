"""Panels of the training dynamics of each run: data maps, accuracy by difficulty and memorised label noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from robustill.analysis.difficulty import BINS, accuracy_by_bin, difficulty
from robustill.analysis.runs import FinishedRun
from robustill.analysis.training_dynamics import (
    Array,
    DataMap,
    NoiseMemorisation,
    compare_learned,
    data_map,
    noise_memorisation,
)
from robustill.core import formatting
from robustill.report.comparison import Comparison
from robustill.report.panels import Panel, Panels, Row
from robustill.report.plots import (
    INK,
    PAPER,
    Draw,
    epoch_axis,
    legend_above,
    legend_height,
    percent_axis,
    plot_series,
    series_colour,
    with_alpha,
)
from robustill.runs.dynamics import Dynamics, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FEWEST_IMAGES = 5
"""A curve of fewer images is not drawn: each of them would move it by more than a fifth."""
_VARIABILITY_STEP = 0.05
_BIN_MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignedRun:
    """A run, restricted to the training samples that it shares with the reference run, with the same labels."""

    number: int
    """position of the run on the page"""
    run: FinishedRun
    dynamics: Dynamics
    series: Series
    """records of the shared samples under attack"""
    ids: Array
    """ids of the shared samples in the data set"""
    map: DataMap
    bins: Array
    """difficulty of the shared samples for the reference run"""

    def centre(self, code: int) -> tuple[float, float] | None:
        """Return the mean variability and the mean confidence of a bin; None for an empty one."""
        members = (self.bins == code) & ~np.isnan(self.map.confidence)
        if not members.any():
            return None
        return float(self.map.variability[members].mean()), float(self.map.confidence[members].mean())


def align_runs(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison]) -> list[AlignedRun]:
    """Return every run that recorded its training images under attack, the reference run first.

    The reference is the baseline of the first comparison. Without a comparison it is the first run without a teacher,
    or the first run of all.
    """
    recorded = [
        (number, run, run.dynamics)
        for number, run in enumerate(runs)
        if run.dynamics is not None and run.dynamics.adversarial is not None
    ]
    if not recorded:
        return []
    baselines = {run.path for each in comparisons[:1] for run in each.baseline.runs}
    _, reference, dynamics = min(recorded, key=lambda each: (each[1].path not in baselines, bool(each[1].teachers)))
    assert dynamics.adversarial is not None
    bins = difficulty(dynamics.adversarial)
    aligned = []
    for number, run, own in sorted(recorded, key=lambda each: each[1] is not reference):
        assert own.adversarial is not None
        if run.get("data.name") != reference.get("data.name"):
            continue
        _, reference_rows, rows = np.intersect1d(dynamics.ids, own.ids, assume_unique=True, return_indices=True)
        same_label = dynamics.labels[reference_rows] == own.labels[rows]
        if not same_label.any():
            continue
        series = own.adversarial.part(rows[same_label])
        aligned.append(
            AlignedRun(
                number=number,
                run=run,
                dynamics=own,
                series=series,
                ids=own.ids[rows[same_label]],
                map=data_map(series),
                bins=bins[reference_rows[same_label]],
            )
        )
    return aligned


def dynamics_panels(aligned: Sequence[AlignedRun]) -> dict[str, Panels]:
    """Return the panels of the training dynamics by their section of the page."""
    return {
        "maps": [_map_panel(each, aligned) for each in aligned],
        "bins": list(_bin_panels(aligned)),
        "noise": list(_noise_panels(aligned)),
    }


def learned_tables(aligned: Sequence[AlignedRun]) -> list[tuple[str, str, list[tuple[str, int, float]]]]:
    """Count the training images that each run and the reference have learned.

    Returns:
        (run, reference, rows of label, number and share) for every run except the reference.
    """
    tables = []
    for each in aligned[1:]:
        reference = aligned[0]
        comparison = compare_learned(reference.dynamics, each.dynamics)
        labels = {
            "both": "learned by both",
            "only_student": f"only by {each.run.name}",
            "only_baseline": f"only by {reference.run.name}",
            "neither": "by neither",
        }
        counts, num_images = comparison.outcomes, len(comparison.ids)
        rows = [(label, counts[key], counts[key] / num_images) for key, label in labels.items()]
        tables.append((each.run.name, reference.run.name, rows))
    return tables


def draw_data_map(each: AlignedRun, aligned: Sequence[AlignedRun]) -> Draw:
    """Return a plot of the images by variability and confidence, with the mean of each bin and how it moved.

    Args:
        each: the run.
        aligned: all runs, the reference first; their maps have the same axes.
    """
    widest = max(float(np.nanmax(run.map.variability, initial=0.0)) for run in aligned)
    right = max(_VARIABILITY_STEP, float(np.ceil(widest / _VARIABILITY_STEP)) * _VARIABILITY_STEP)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        cells = axes.hexbin(
            each.map.variability,
            each.map.confidence,
            gridsize=(20, 11),
            extent=(0, right, 0, 1),
            mincnt=1,
            linewidths=0,
        )
        # The opacity is logarithmic, so that a cell of one image stays visible next to one of a thousand.
        count = np.asarray(cells.get_array(), dtype=np.float64)
        opacity = 0.1 + 0.5 * np.log(count) / max(1.0, float(np.log(count.max())))
        cells.set_array(None)
        cells.set_facecolor([with_alpha(series_colour(each.number), float(alpha)) for alpha in opacity])
        for code, name in enumerate(BINS):
            _mark_bin(axes, each.centre(code), aligned[0].centre(code), name, _BIN_MARKERS[code])
        axes.set_xlim(0, right)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        percent_axis(axes, "mean probability of the label", (0, 1))
        axes.set_xlabel("variability over the epochs")
        legend_above(figure)

    return paint


def draw_bin_accuracy(aligned: Sequence[AlignedRun], code: int) -> Draw:
    """Return a plot of each run's accuracy under attack on the images of one bin, over the epochs."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for each in aligned:
            accuracy = accuracy_by_bin(each.series, each.bins)[code]
            plot_series(axes, each.series.epochs.tolist(), accuracy.tolist(), each.run.name, each.number)
        percent_axis(axes, "accuracy under attack")
        epoch_axis(axes)
        legend_above(figure)

    return paint


def draw_noise(memorised: Sequence[tuple[AlignedRun, NoiseMemorisation]]) -> Draw:
    """Return a plot of the share of flipped labels that each run predicts, over the epochs."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for each, noise in memorised:
            plot_series(axes, noise.epochs.tolist(), noise.flipped.tolist(), each.run.name, each.number)
        percent_axis(axes, "flipped labels predicted")
        epoch_axis(axes)
        legend_above(figure)

    return paint


def _mark_bin(
    axes: Any, here: tuple[float, float] | None, before: tuple[float, float] | None, name: str, marker: str
) -> None:
    """Mark the mean of a bin, and by a line to a hollow marker where it is for the reference."""
    if here is None:
        return
    if before is not None and before != here:
        axes.plot(*zip(before, here, strict=True), color=INK, linewidth=1.1)
        axes.plot(*before, marker=marker, markersize=4.5, color=PAPER, markeredgecolor=INK)
    style = {"linestyle": "none", "markersize": 6.5, "markeredgecolor": PAPER, "markeredgewidth": 0.8}
    axes.plot(*here, marker=marker, color=INK, label=name, **style)


def _map_panel(each: AlignedRun, aligned: Sequence[AlignedRun]) -> Panel:
    centres = [(name, each.centre(code)) for code, name in enumerate(BINS)]
    summary = ", ".join(
        f"{name} {formatting.percent(centre[1])} with a variability of {formatting.percent(centre[0])}"
        for name, centre in centres
        if centre
    )

    def rows() -> Iterator[Row]:
        columns = (each.ids, each.map.confidence, each.map.variability, each.map.correctness, each.bins)
        for sample, confidence, variability, correctness, code in zip(*columns, strict=True):
            yield {
                "id": sample,
                "mean_probability": confidence,
                "variability": variability,
                "correctness": correctness,
                "difficulty": BINS[code],
            }

    return Panel(
        name=f"map-{each.number}",
        paint=draw_data_map(each, aligned),
        rows=rows,
        description=f"Data map of {each.run.name}, {len(each.bins)} images. "
        f"Mean probability of the label by difficulty: {summary}.",
        title=each.run.name,
        run=each.run.name,
        height=3.2,
    )


def _bin_panels(aligned: Sequence[AlignedRun]) -> Iterator[Panel]:
    for code, name in enumerate(BINS):
        num_images = int((aligned[0].bins == code).sum()) if aligned else 0
        if num_images < _FEWEST_IMAGES:
            continue
        curves = [
            (each.run.name, each.series.epochs.tolist(), accuracy_by_bin(each.series, each.bins)[code].tolist())
            for each in aligned
        ]
        last = ", ".join(f"{run} {formatting.percent(values[-1])}" for run, _, values in curves)
        yield Panel(
            name=f"bin-{name}",
            paint=draw_bin_accuracy(aligned, code),
            rows=lambda curves=curves: _curve_rows(curves, "accuracy"),  # type: ignore[misc]
            description=f"Accuracy under attack on {name} training images over the epochs; in the last epoch {last}.",
            title=f"{name}, {formatting.count(num_images)} images",
            height=2.0 + legend_height([each.run.name for each in aligned]),
        )


def _noise_panels(aligned: Sequence[AlignedRun]) -> Iterator[Panel]:
    results = [(each, noise_memorisation(each.dynamics)) for each in aligned]
    memorised = [(each, noise) for each, noise in results if noise is not None and noise.num_flipped >= _FEWEST_IMAGES]
    if not memorised:
        return
    last = "; ".join(
        f"{each.run.name} predicts {formatting.percent(noise.final)} of {noise.num_flipped} at the end"
        for each, noise in memorised
    )
    curves = [(each.run.name, noise.epochs.tolist(), noise.flipped.tolist()) for each, noise in memorised]
    yield Panel(
        name="noise",
        paint=draw_noise(memorised),
        rows=lambda: _curve_rows(curves, "predicted_as_flipped"),
        description=f"Memorised flipped labels: {last}.",
        title="Memorised label noise",
        height=2.2 + legend_height([each.run.name for each, _ in memorised]),
    )


def _curve_rows(curves: Sequence[tuple[str, list[int], list[float]]], column: str) -> Iterator[Row]:
    for run, epochs, values in curves:
        for epoch, value in zip(epochs, values, strict=True):
            yield {"run": run, "epoch": epoch, column: value}
