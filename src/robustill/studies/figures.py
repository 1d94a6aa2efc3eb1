"""The figures of a study: a number over the axis of the study, with its spread over seeds, and memorisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustill.core.formatting import shorten
from robustill.report.plots import MUTED, PAPER, SERIES, Draw, draw, render_file
from robustill.runs.records import FIXED_ATTACK
from robustill.studies.memorisation import MemorisationResult
from robustill.studies.study import Study
from robustill.studies.table import RowResult, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_TITLES = {
    "robust_accuracy": "robust accuracy",
    "clean_accuracy": "clean accuracy",
    "ece_adversarial": "ECE under attack",
    "ece_pgd": f"ECE under {FIXED_ATTACK}",
}
# The best epoch has filled markers and solid lines, the last one hollow markers and dashed lines, to differ without
# colour.
_DASHED: Any = (0, (5, 2))
_LINE_STYLES: dict[str, Any] = {"best": "-", "last": _DASHED}
_MARKERS = ("o", "s", "^", "D")
_DOTTED: Any = (0, (1, 1.4))
_DASH_DOTTED: Any = (0, (6, 2, 1, 2))
# The line styles of a row's images with true and with wrong labels.
_LABEL_STYLES: tuple[tuple[Any, Any], ...] = (("-", _DOTTED), (_DASHED, _DASH_DOTTED))


def figures(study: Study, table: Table) -> dict[str, bytes]:
    """Draw each figure as an SVG file, by a short name; none without results of the best and of the last epoch."""
    if not _LINE_STYLES.keys() <= {each.checkpoint for each in table.results}:
        return {}
    files = {}
    clean, robust, _, ece = table.shown
    for name, column in {"robust": robust, "clean": clean, "ece-attacked": ece}.items():
        if study.design.axis is None:
            paint, height = _dots(table, column), 1.2 + 0.22 * len(study.design.rows)
        else:
            paint, height = _curves(table, column, study.design.axis), 3.2
        files[name] = render_file(draw(paint, width=4.6, height=height), "svg")
    return files


def memorisation_figure(result: MemorisationResult, checkpoint: str) -> bytes:
    """Draw the share of the images whose memorisation is at least x, over x, as an SVG file; wrong labels apart."""
    trainings = {(row, seed): each for (row, seed, name), each in result.trainings.items() if name == checkpoint}
    rows = list(dict.fromkeys(row for row, _ in trainings))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for index, row in enumerate(rows):
            seeds = [each for (label, _), each in trainings.items() if label == row]
            groups = list(dict.fromkeys(group for each in seeds for group in each.groups))
            # Where there are wrong labels, all images together are left out.
            for group in groups[1:] or groups:
                scores = [
                    each.memorisation["adversarial"].score[each.groups[group]] for each in seeds if group in each.groups
                ]
                score = np.sort(np.concatenate(scores))
                score = score[~np.isnan(score)]
                if len(score):
                    axes.step(
                        np.append(score, 1.0),
                        1 - np.arange(len(score) + 1) / len(score),
                        label=f"{shorten(row)}, {group}",
                        color=SERIES[index % len(SERIES)],
                        linestyle=_LABEL_STYLES[index % len(_LABEL_STYLES)][group == "wrong labels"],
                    )
        axes.set_xlabel(f"memorisation under attack, at least ({checkpoint})")
        axes.set_ylabel("share of the training images")
        _finish(figure, axes.yaxis, "accuracy")

    return render_file(draw(paint, width=4.6, height=3.2), "svg")


def _curves(table: Table, column: str, axis: str) -> Draw:
    """Draw a curve for each series and checkpoint; rows without a series are horizontal lines."""
    series = list(dict.fromkeys(each.row.series for each in table.results if each.row.series is not None))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for index, name in enumerate(series):
            for checkpoint in _LINE_STYLES:
                results = [each for each in table.results if (each.row.series, each.checkpoint) == (name, checkpoint)]
                _draw_curve(axes, results, column, f"{shorten(str(name))}, {checkpoint}", index, checkpoint)
        levels = [each for each in table.results if each.row.series is None and each.checkpoint in _LINE_STYLES]
        for index, label in enumerate(dict.fromkeys(each.row.label for each in levels)):
            for each in levels:
                if each.row.label == label:
                    _draw_level(axes, each, column, index)
        axes.set_xlabel(axis)
        _finish(figure, axes.yaxis, column)
        axes.set_ylabel(_title(table, column))

    return paint


def _draw_curve(axes: Axes, results: Sequence[RowResult], column: str, label: str, index: int, checkpoint: str) -> None:
    points = sorted((each.row.value or 0.0, *each.mean_std(column)) for each in results)
    if not points:
        return
    x, means, stds = zip(*points, strict=True)
    colour, hollow = SERIES[index % len(SERIES)], checkpoint != "best"
    axes.errorbar(
        x,
        means,
        yerr=[0.0 if math.isnan(std) else std for std in stds],
        label=label,
        color=colour,
        linestyle=_LINE_STYLES[checkpoint],
        marker=_MARKERS[index % len(_MARKERS)],
        markerfacecolor=PAPER if hollow else colour,
        elinewidth=0.8,
        capsize=2,
    )


def _draw_level(axes: Axes, result: RowResult, column: str, index: int) -> None:
    mean, std = result.mean_std(column)
    colour = MUTED if result.row.against is None else SERIES[(index + 1) % len(SERIES)]
    if result.checkpoint == "best" and not math.isnan(std):
        axes.axhspan(mean - std, mean + std, color=colour, alpha=0.12, linewidth=0)
    style = _DOTTED if result.checkpoint == "best" else _DASH_DOTTED
    axes.axhline(mean, color=colour, linestyle=style, label=f"{shorten(result.row.label)}, {result.checkpoint}")


def _dots(table: Table, column: str) -> Draw:
    """Draw one line of dots for each row of the table, the first at the top."""
    labels = list(dict.fromkeys(each.row.label for each in table.results))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for checkpoint in _LINE_STYLES:
            results = [each for each in table.results if each.checkpoint == checkpoint]
            means, stds = zip(*(each.mean_std(column) for each in results), strict=True)
            hollow = checkpoint != "best"
            axes.errorbar(
                means,
                [len(labels) - 1 - labels.index(each.row.label) - 0.2 * hollow for each in results],
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
    seeds = max(len(each.seeds) for each in table.results)
    return _TITLES[column] if seeds == 1 else f"{_TITLES[column]}, mean ± s.d. of {seeds} seeds"


def _finish(figure: Figure, axis: Any, column: str) -> None:
    if column.endswith("accuracy"):
        axis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g}%")
    figure.legend(loc="outside upper left", ncols=2, fontsize=8.2)
