"""Figures of a study: a number over what was swept, with the spread of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustill.core.formatting import shorten
from robustill.report.plots import MUTED, PAPER, SERIES, Draw, draw, whole_file
from robustill.studies.memorisation import Influence
from robustill.studies.study import Study
from robustill.studies.table import Line, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_DRAWN = {"robust": "robust_accuracy", "clean": "clean_accuracy", "ece-adversarial": "ece_adversarial"}
_TITLES = {
    "robust_accuracy": "robust accuracy",
    "clean_accuracy": "clean accuracy",
    "ece_adversarial": "ECE under attack",
}
# Told apart without colour: filled and full is the best epoch, hollow and dashed the last.
_CHECKPOINTS: dict[str, Any] = {"best": "-", "last": (0, (5, 2))}
_MARKERS = ("o", "s", "^", "D")
_LEVEL: Any = (0, (1, 1.4))
# Of a row, its images with true and with wrong labels.
_BY_LABELS: tuple[tuple[Any, Any], ...] = (("-", _LEVEL), ((0, (5, 2)), (0, (6, 2, 1, 2))))


def figures(study: Study, table: Table) -> dict[str, bytes]:
    """Each figure as a whole SVG file, by a short name; none where nothing was done."""
    if not table.lines:
        return {}
    found = {}
    for name, column in _DRAWN.items():
        if study.design.axis is None:
            paint, height = _dots(table, column), 1.2 + 0.22 * len(study.design.rows)
        else:
            paint, height = _curve(table, column, study.design.axis), 3.2
        found[name] = whole_file(draw(paint, width=4.6, height=height), "svg")
    return found


def memorised(found: Influence, checkpoint: str) -> bytes:
    """Which share of the images is known by heart at least so far, as a whole SVG file; wrong labels apart."""
    parts = {(row, seed): each for (row, seed, what), each in found.trainings.items() if what == checkpoint}
    rows = list(dict.fromkeys(row for row, _ in parts))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, row in enumerate(rows):
            several = [each for (label, _), each in parts.items() if label == row]
            groups = list(dict.fromkeys(group for each in several for group in each.groups))
            for group in groups[1:] or groups:
                scores = [
                    each.memorisation["adversarial"].score[each.groups[group]]
                    for each in several
                    if group in each.groups
                ]
                score = np.sort(np.concatenate(scores))
                score = score[~np.isnan(score)]
                if len(score):
                    axes.step(
                        np.append(score, 1.0),
                        1 - np.arange(len(score) + 1) / len(score),
                        label=f"{shorten(row)}, {group}",
                        color=SERIES[number % len(SERIES)],
                        linestyle=_BY_LABELS[number % len(_BY_LABELS)][group == "wrong labels"],
                    )
        axes.set_xlabel(f"known by heart under attack, at least ({checkpoint})")
        axes.set_ylabel("share of the training images")
        _finish(figure, axes.yaxis, "accuracy")

    return whole_file(draw(paint, width=4.6, height=3.2), "svg")


def _curve(table: Table, column: str, axis: str) -> Draw:
    """One line for each series and checkpoint; rows beside the axis are level lines."""
    series = list(dict.fromkeys(line.row.series for line in table.lines if line.row.series is not None))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, name in enumerate(series):
            for checkpoint in _CHECKPOINTS:
                points = [line for line in table.lines if (line.row.series, line.checkpoint) == (name, checkpoint)]
                _points(axes, points, column, f"{shorten(str(name))}, {checkpoint}", number, checkpoint)
        levels = [line for line in table.lines if line.row.series is None and line.checkpoint in _CHECKPOINTS]
        for number, label in enumerate(dict.fromkeys(line.row.label for line in levels)):
            for line in levels:
                if line.row.label == label:
                    _level(axes, line, column, number)
        axes.set_xlabel(axis)
        _finish(figure, axes.yaxis, column)
        axes.set_ylabel(_title(table, column))

    return paint


def _points(axes: Axes, lines: Sequence[Line], column: str, label: str, number: int, checkpoint: str) -> None:
    found = sorted((line.row.value or 0.0, *line.mean_std(column)) for line in lines)
    if not found:
        return
    x, means, stds = zip(*found, strict=True)
    colour, hollow = SERIES[number % len(SERIES)], checkpoint != "best"
    axes.errorbar(
        x,
        means,
        yerr=[0.0 if math.isnan(std) else std for std in stds],
        label=label,
        color=colour,
        linestyle=_CHECKPOINTS[checkpoint],
        marker=_MARKERS[number % len(_MARKERS)],
        markerfacecolor=PAPER if hollow else colour,
        elinewidth=0.8,
        capsize=2,
    )


def _level(axes: Axes, line: Line, column: str, number: int) -> None:
    mean, std = line.mean_std(column)
    colour = MUTED if line.row.against is None else SERIES[(number + 1) % len(SERIES)]
    if line.checkpoint == "best" and not math.isnan(std):
        axes.axhspan(mean - std, mean + std, color=colour, alpha=0.12, linewidth=0)
    dashes = _LEVEL if line.checkpoint == "best" else (0, (6, 2, 1, 2))
    axes.axhline(mean, color=colour, linestyle=dashes, label=f"{shorten(line.row.label)}, {line.checkpoint}")


def _dots(table: Table, column: str) -> Draw:
    """One row of the figure for each of the table, the first at the top."""
    labels = list(dict.fromkeys(line.row.label for line in table.lines))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for checkpoint in _CHECKPOINTS:
            lines = [line for line in table.lines if line.checkpoint == checkpoint]
            means, stds = zip(*(line.mean_std(column) for line in lines), strict=True)
            hollow = checkpoint != "best"
            axes.errorbar(
                means,
                [len(labels) - 1 - labels.index(line.row.label) - 0.2 * hollow for line in lines],
                xerr=[0.0 if math.isnan(std) else std for std in stds],
                label=checkpoint,
                color=SERIES[hollow],
                linestyle="none",
                marker=_MARKERS[hollow],
                markerfacecolor=PAPER if hollow else SERIES[0],
                elinewidth=0.8,
                capsize=2,
            )
        axes.set_yticks(range(len(labels)), [shorten(label) for label in reversed(labels)])
        _finish(figure, axes.xaxis, column)
        axes.set_xlabel(_title(table, column))

    return paint


def _title(table: Table, column: str) -> str:
    seeds = max(len(line.seeds) for line in table.lines)
    return _TITLES[column] if seeds == 1 else f"{_TITLES[column]}, mean ± s.d. of {seeds} seeds"


def _finish(figure: Figure, axis: Any, column: str) -> None:
    if column.endswith("accuracy"):
        axis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g}%")
    figure.legend(loc="outside upper left", ncols=2, fontsize=8.2)
