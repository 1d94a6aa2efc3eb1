"""What training did to each image, runs beside their baseline: data maps and curves by difficulty."""

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
    LearnedComparison,
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
    plot_series,
    run_label,
    series_colour,
    share_axis,
)
from robustill.runs.dynamics import Dynamics, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Beside:
    """A run on the samples that the reference was trained on too, with the same labels."""

    number: int
    """of the run on the page"""
    run: FinishedRun
    dynamics: Dynamics
    series: Series
    """under attack, of these samples"""
    ids: Array
    """of these samples in the data set"""
    map: DataMap
    bins: Array
    """of these samples, by the reference's difficulty"""

    def centre(self, code: int) -> tuple[float, float] | None:
        """Mean variability and mean confidence of a bin; None for an empty one."""
        members = (self.bins == code) & ~np.isnan(self.map.confidence)
        if not members.any():
            return None
        return float(self.map.variability[members].mean()), float(self.map.confidence[members].mean())


def side_by_side(runs: Sequence[FinishedRun], comparisons: Sequence[Comparison]) -> list[Beside]:
    """Every run that recorded its images under attack, the reference first: the baseline of the first comparison.

    Without a comparison the reference is the first run without a teacher, or the first at all.
    """
    known = [
        (number, run, run.dynamics)
        for number, run in enumerate(runs)
        if run.dynamics is not None and run.dynamics.adversarial is not None
    ]
    if not known:
        return []
    baselines = [each.baseline.path for each in comparisons]
    _, reference, dynamics = min(known, key=lambda each: (each[1].path not in baselines[:1], bool(each[1].teachers)))
    assert dynamics.adversarial is not None
    bins = difficulty(dynamics.adversarial)
    found = []
    for number, run, own in sorted(known, key=lambda each: each[1] is not reference):
        assert own.adversarial is not None
        if run.get("data.name") != reference.get("data.name"):
            continue
        _, theirs, rows = np.intersect1d(dynamics.ids, own.ids, assume_unique=True, return_indices=True)
        same = dynamics.labels[theirs] == own.labels[rows]
        if not same.any():
            continue
        series = own.adversarial.part(rows[same])
        found.append(
            Beside(
                number=number,
                run=run,
                dynamics=own,
                series=series,
                ids=own.ids[rows[same]],
                map=data_map(series),
                bins=bins[theirs[same]],
            )
        )
    return found


def figures(shown: Sequence[Beside]) -> dict[str, Panels]:
    """Rows of panels by their place on the page."""
    return {
        "maps": [_map_panel(each, shown[0]) for each in shown],
        "bins": list(_bin_panels(shown)),
        "noise": list(_noise_panels(shown)),
    }


def outcomes(shown: Sequence[Beside]) -> list[tuple[str, str, list[tuple[str, int, float]]]]:
    """(run, reference, rows of label, number and share) for every run beside the reference."""
    tables = []
    for each in shown[1:]:
        reference = shown[0]
        found: LearnedComparison = compare_learned(reference.dynamics, each.dynamics)
        labels = {
            "both": "learned by both",
            "only_student": f"only by {each.run.name}",
            "only_baseline": f"only by {reference.run.name}",
            "neither": "by neither",
        }
        rows = [(label, found.outcomes[key], found.outcomes[key] / len(found.ids)) for key, label in labels.items()]
        tables.append((each.run.name, reference.run.name, rows))
    return tables


def map_of(each: Beside, reference: Beside) -> Draw:
    """Where the images lie, darker where there are more; the means of the bins, with what moved them."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        cells = axes.hexbin(
            each.map.variability,
            each.map.confidence,
            gridsize=(20, 11),
            extent=(0, 0.5, 0, 1),
            mincnt=1,
            linewidths=0,
        )
        # By the logarithm: one image must be seen beside a thousand.
        count = np.asarray(cells.get_array(), dtype=np.float64)
        strength = 0.1 + 0.5 * np.log(count) / max(1.0, float(np.log(count.max())))
        cells.set_array(None)
        cells.set_facecolor([_with_alpha(series_colour(each.number), alpha) for alpha in strength])
        for code, name in enumerate(BINS):
            _mark_bin(axes, each.centre(code), reference.centre(code), name)
        axes.set_xlim(0, 0.5)
        share_axis(axes, "mean probability of the label")
        axes.set_xlabel("variability over the epochs")

    return paint


def accuracy_of_bin(shown: Sequence[Beside], code: int) -> Draw:
    """Share of one bin's images that are right under attack, over the epochs, all runs."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for each in shown:
            accuracy = accuracy_by_bin(each.series, each.bins)[code]
            plot_series(axes, each.series.epochs.tolist(), accuracy.tolist(), run_label(each.run), each.number)
        share_axis(axes, "accuracy under attack")
        epoch_axis(axes)
        legend_above(figure, columns=2)

    return paint


def noise_learned(found: Sequence[tuple[Beside, NoiseMemorisation]]) -> Draw:
    """Share of the flipped labels that are predicted as they were flipped, over the epochs."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for each, noise in found:
            plot_series(axes, noise.epochs.tolist(), noise.flipped.tolist(), run_label(each.run), each.number)
        share_axis(axes, "predicted as flipped")
        epoch_axis(axes)
        legend_above(figure, columns=2)

    return paint


def _mark_bin(axes: Any, here: tuple[float, float] | None, before: tuple[float, float] | None, name: str) -> None:
    if here is None:
        return
    if before is not None and before != here:
        axes.plot(*zip(before, here, strict=True), color=INK, linewidth=1.1)
        axes.plot(*before, marker="o", markersize=4, color=PAPER, markeredgecolor=INK)
    axes.plot(*here, marker="o", markersize=5.5, color=INK, markeredgecolor=PAPER, markeredgewidth=0.8)
    # Below its dot, where lines seldom lead; above it where the axis is near.
    axes.annotate(name, here, (6, 2 if here[1] < 0.1 else -9), textcoords="offset points", fontweight="bold")


def _map_panel(each: Beside, reference: Beside) -> Panel:
    centres = [(name, each.centre(code)) for code, name in enumerate(BINS)]
    told = ", ".join(
        f"{name} {formatting.percent(at[1])} with a spread of {formatting.percent(at[0])}" for name, at in centres if at
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
        paint=map_of(each, reference),
        rows=rows,
        description=f"Data map of {each.run.name}, {len(each.bins)} images. "
        f"Mean probability of the label by difficulty: {told}.",
        title=each.run.name,
        run=each.run.name,
        height=2.9,
    )


def _bin_panels(shown: Sequence[Beside]) -> Iterator[Panel]:
    for code, name in enumerate(BINS):
        members = int((shown[0].bins == code).sum()) if shown else 0
        if not members:
            continue
        curves = [
            (each.run.name, each.series.epochs.tolist(), accuracy_by_bin(each.series, each.bins)[code].tolist())
            for each in shown
        ]
        told = ", ".join(f"{run} {formatting.percent(values[-1])}" for run, _, values in curves)
        yield Panel(
            name=f"bin-{name}",
            paint=accuracy_of_bin(shown, code),
            rows=lambda curves=curves: _curve_rows(curves, "accuracy"),  # type: ignore[misc]
            description=f"Accuracy under attack on {name} training images over the epochs; in the last one {told}.",
            title=f"{name}, {formatting.count(members)} images",
            height=2.3,
        )


def _noise_panels(shown: Sequence[Beside]) -> Iterator[Panel]:
    found = [(each, noise) for each in shown if (noise := noise_memorisation(each.dynamics)) is not None]
    if not found:
        return
    told = "; ".join(
        f"{each.run.name} holds {formatting.percent(noise.final)} of {noise.num_flipped} at the end"
        for each, noise in found
    )
    curves = [(each.run.name, noise.epochs.tolist(), noise.flipped.tolist()) for each, noise in found]
    yield Panel(
        name="noise",
        paint=noise_learned(found),
        rows=lambda: _curve_rows(curves, "predicted_as_flipped"),
        description=f"Flipped labels learned by heart: {told}.",
        title="Flipped labels predicted as flipped",
        height=2.5,
    )


def _curve_rows(curves: Sequence[tuple[str, list[int], list[float]]], column: str) -> Iterator[Row]:
    for run, epochs, values in curves:
        for epoch, value in zip(epochs, values, strict=True):
            yield {"run": run, "epoch": epoch, column: value}


def _with_alpha(colour: str, alpha: float) -> tuple[float, float, float, float]:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue, float(alpha)
