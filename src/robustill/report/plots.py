"""Plots of the report, one panel each: legible on a phone, with runs that can be distinguished without colour.

A plot is drawn in the light palette. On the page its colours become CSS variables, so that it follows the
colour scheme.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from robustill.analysis.calibration import ece, reliability
from robustill.analysis.runs import FinishedRun
from robustill.analysis.statistics import wilson_interval
from robustill.core.formatting import radius, shorten
from robustill.runs.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, MUTED, LINE, PAPER = "#1c2228", "#5a6570", "#d5dbe1", "#fefefe"
SERIES = ("#0a5ea8", "#c0420b", "#2c7a4b", "#7b4ea6", "#9a6407", "#4b5662")
"""Colours that are dark enough for thin lines on white; the page replaces them on a dark background."""

_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robustill",
    # TrueType outlines: many publishers refuse the default, type 3.
    "pdf.fonttype": 42,
    # A dollar sign in a name does not start a formula.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.2,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "ytick.major.pad": 5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.2,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.borderaxespad": 0.1,
}
Draw = Callable[["Figure"], None]


def draw(paint: Draw, *, width: float = 3.7, height: float = 2.7) -> Figure:
    """Draw a figure in the style of the report.

    Args:
        paint: adds axes to an empty figure.
        width: in inches.
        height: in inches.
    """
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
    return figure


def render_inline_svg(figure: Figure, name: str, description: str) -> str:
    """Render a figure as an SVG element: its colours are CSS variables, its ids are unique, and it loads nothing.

    Args:
        figure: from `draw`.
        name: unique on the page; every id starts with it.
        description: text for readers who cannot see the figure.
    """
    file = io.StringIO()
    with _style(), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so that letters missing from this font do not matter.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg {box.group()} role="img" aria-label="{escape(description)}">{body}'


def render_file(figure: Figure, kind: str) -> bytes:
    """Render a figure as a file in the light palette; the same figure gives the same bytes.

    Args:
        figure: from `draw`.
        kind: "svg", which keeps text as text, or "pdf", which embeds the font.
    """
    file = io.BytesIO()
    omitted = {"svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer")}[kind]
    with _style(), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box and is no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format=kind, facecolor=PAPER, metadata=dict.fromkeys(omitted))
    return file.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def draw_training_accuracy(run: FinishedRun, series: int) -> Draw:
    """Return a plot of one run's accuracy on training images under attack and on validation images, over the epochs."""
    lines = (
        ("validation, clean", "validation_clean_accuracy", MUTED, _DASHES[2]),
        ("training, under attack", "train_adversarial_accuracy", INK, _DASHES[1]),
        ("validation, under attack", "validation_robust_accuracy", series_colour(series), "-"),
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for label, key, colour, dashes in lines:
            epochs, values = run.series(key)
            if epochs:
                marker = "o" if len(epochs) == 1 else None
                axes.plot(epochs, values, label=label, color=colour, linestyle=dashes, marker=marker)
        best = _mark_best(axes, run, series)
        if best is not None:
            # Late in the training the text extends to the left, so that it stays inside the axes.
            is_late = best[0] > 0.7 * run.metrics[-1]["epoch"]
            offset, alignment = ((4, 7), "right") if is_late else ((0, 7), "center")
            axes.annotate(f"best, epoch {run.best}", best, offset, textcoords="offset points", ha=alignment)
        percent_axis(axes, "accuracy")
        epoch_axis(axes)
        legend_above(figure, columns=1)

    return paint


def draw_validation_robustness(runs: Sequence[FinishedRun]) -> Draw:
    """Return a plot of each run's robust accuracy on validation images, over the epochs."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, run in enumerate(runs):
            epochs, values = run.series("validation_robust_accuracy")
            if epochs:
                plot_series(axes, epochs, values, run_label(run), number)
                _mark_best(axes, run, number)
        epoch_axis(axes)
        axes.margins(y=0.12)
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.yaxis.set_major_formatter(percent_text)
        axes.set_ylabel("validation robust accuracy")
        legend_above(figure, columns=2)

    return paint


def draw_training_loss(runs: Sequence[FinishedRun]) -> Draw:
    """Return a plot of each run's own objective on its training images, over the epochs."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for number, run in enumerate(runs):
            epochs, values = run.series("train_loss")
            if epochs:
                plot_series(axes, epochs, values, run_label(run), number)
        epoch_axis(axes)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("training loss")
        legend_above(figure, columns=2)

    return paint


def draw_robustness_by_eps(runs: Sequence[FinishedRun], norm: str) -> Draw:
    """Return a plot of robust accuracy by radius in one norm, with 95 % intervals and the radius of the training."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        largest = 0.0
        for number, run in enumerate(runs):
            curve = eps_curve(run, norm)
            if curve is None:
                continue
            grid, share, low, high = curve
            largest = max(largest, grid[-1])
            axes.fill_between(grid, low, high, color=series_colour(number), alpha=0.14, linewidth=0)
            plot_series(axes, grid, share, run_label(run), number, markers=True)
        for eps in sorted({run.eps for run in runs if run.eps and run.get("threat.norm") == norm}):
            axes.axvline(eps, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
            axes.annotate(
                f"trained at {radius(norm, eps)}",
                (eps, 1.0),
                (3, -2),
                textcoords="offset points",
                va="top",
                color=MUTED,
            )
        axes.set_xlabel(f"eps ({norm})")
        if radius(norm, largest).endswith("/255"):
            levels = np.unique(np.linspace(0, round(largest * 255), 5).round().astype(int))
            axes.set_xticks(levels / 255, [f"{level}/255" if level else "0" for level in levels])
        else:
            axes.locator_params(axis="x", nbins=5)
        axes.set_xlim(left=0)
        percent_axis(axes, "robust accuracy")
        legend_above(figure, columns=2)

    return paint


def eps_curve(run: FinishedRun, norm: str) -> tuple[list[float], ...] | None:
    """Return the radii, the robust accuracy at each, and the ends of its 95 % interval.

    None if the run was not evaluated at several radii in this norm.
    """
    if run.main is None or run.main.norm != norm or not len(run.main.records.eps_grid):
        return None
    records = run.main.records
    grid, correct = records.eps_grid, records.robust_at_eps.sum(axis=0)
    if grid[0] > 0:
        # At radius 0 robust accuracy is clean accuracy.
        grid, correct = np.append(0, grid), np.append(records.clean_correct.sum(), correct)
    low, high = zip(*(wilson_interval(int(each), len(records)) for each in correct), strict=True)
    return grid.tolist(), (correct / len(records)).tolist(), list(low), list(high)


def draw_reliability(probabilities: Any, labels: Any, series: int) -> Draw:
    """Return a reliability diagram: accuracy by confidence, and below it the share of images by confidence."""
    diagram = reliability(probabilities, labels)
    filled = diagram.count > 0
    centre, width = (diagram.edges[1:] + diagram.edges[:-1]) / 2, diagram.edges[1]

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, sharex=True, height_ratios=(4, 1.1))
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        top.bar(
            centre[filled], diagram.accuracy[filled], width * 0.92, color=series_colour(series), alpha=0.22, linewidth=0
        )
        # The area of a point is proportional to its number of images, so that small bins look small.
        top.scatter(
            diagram.mean_confidence[filled],
            diagram.accuracy[filled],
            s=4 + 40 * diagram.count[filled] / diagram.count.max(),
            color=series_colour(series),
            marker=_MARKERS[series % len(_MARKERS)],
            linewidth=0,
            clip_on=False,
            zorder=3,
        )
        percent_axis(top, "accuracy")
        top.text(
            0.04, 0.95, f"ECE {ece(probabilities, labels):.3f}", transform=top.transAxes, va="top", fontweight="bold"
        )
        bottom.bar(centre, diagram.count / diagram.count.sum(), width * 0.92, color=series_colour(series), alpha=0.7)
        bottom.set_xlim(0, 1)
        bottom.set_ylabel("images")
        bottom.yaxis.set_major_formatter(percent_text)
        bottom.set_xlabel("confidence")
        bottom.xaxis.set_major_formatter(percent_text)

    return paint


def draw_class_robustness(runs: Sequence[FinishedRun]) -> Draw:
    """Return a plot of robust accuracy by class, with the hardest class of the first run at the top."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        evaluated = [(number, run, run.main.records) for number, run in enumerate(runs) if run.main is not None]
        first = evaluated[0][2]
        order = np.argsort(robust_by_class(first))[::-1]
        for number, run, records in evaluated:
            axes.plot(
                robust_by_class(records)[order],
                range(len(order)),
                linestyle="none",
                marker=_MARKERS[number % len(_MARKERS)],
                color=series_colour(number),
                markersize=5,
                label=run_label(run),
            )
        axes.set_yticks(range(len(order)), [shorten(first.classes[k], 14) for k in order])
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(percent_text)
        axes.set_xlabel("robust accuracy")
        legend_above(figure, columns=2)

    return paint


def robust_by_class(records: Records) -> Any:
    """Compute the robust accuracy of each class, float64 [K]; 0 for a class without images."""
    total = np.bincount(records.label, minlength=len(records.classes))
    robust = np.bincount(records.label, weights=records.robust, minlength=len(records.classes))
    return robust / np.maximum(total, 1)


def plot_series(
    axes: Axes, x: Sequence[float], y: Sequence[float], label: str, style: int, *, markers: bool = False
) -> None:
    """Plot the line of one run in its colour and dashes, with markers if requested or if it has a single point."""
    axes.plot(
        x,
        y,
        label=label,
        color=series_colour(style),
        linestyle=_DASHES[style % len(_DASHES)],
        marker=_MARKERS[style % len(_MARKERS)] if markers or len(x) == 1 else None,
    )


def best_validation_accuracy(run: FinishedRun) -> float | None:
    """Return the robust accuracy on validation images in the best epoch; None if it is not recorded."""
    for line in run.metrics:
        if line["epoch"] == run.best:
            return line.get("validation_robust_accuracy")
    return None


def _mark_best(axes: Axes, run: FinishedRun, style: int) -> tuple[int, float] | None:
    """Mark the best epoch and return its position; None if there is no best epoch, or it was not validated."""
    value = best_validation_accuracy(run)
    if run.best is None or value is None:
        return None
    marker = _MARKERS[style % len(_MARKERS)]
    axes.plot([run.best], [value], marker=marker, markersize=7, color=series_colour(style), markeredgecolor=PAPER)
    return run.best, value


def series_colour(number: int) -> str:
    """Return the colour of a run, the same in every figure."""
    return SERIES[number % len(SERIES)]


def run_label(run: FinishedRun) -> str:
    """Return the name of a run as legends show it."""
    label = shorten(run.name)
    # Matplotlib omits labels that start with an underscore from legends.
    return label.replace("_", "\N{ZERO WIDTH SPACE}_", 1) if run.name.startswith("_") else label


def percent_text(value: float, _: float) -> str:
    """Format a tick of an axis in percent."""
    return f"{100 * value:.0f}%"


def epoch_axis(axes: Axes) -> None:
    """Label the x axis with whole epochs."""
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.set_xlabel("epoch")


def percent_axis(axes: Axes, label: str) -> None:
    """Let the y axis range from 0 to 100 %, with this label."""
    axes.set_ylim(0, 1)
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(percent_text)


def legend_above(figure: Figure, columns: int) -> None:
    """Place one legend for all axes above them."""
    figure.legend(loc="outside upper left", ncols=columns, fontsize=8.2)


def with_alpha(colour: str, alpha: float) -> tuple[float, float, float, float]:
    """Return a colour "#rrggbb" with an opacity, as (red, green, blue, alpha) in [0,1]."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue, alpha
