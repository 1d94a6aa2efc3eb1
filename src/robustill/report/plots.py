"""Figures of the page, one panel each: small enough to be read on a phone, and told apart without colour.

A figure is drawn in the light palette; on the page its colours become CSS variables, so that it follows the scheme.
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
"""Dark enough on white for thin lines; the page replaces them where the ground is dark."""

_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robustill",
    # Outlines that publishers take; the default, type 3, many refuse.
    "pdf.fonttype": 42,
    # A name with a dollar sign is a name, not a formula.
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
    """A figure painted in the page's style, for a page or for a paper.

    Args:
        paint: puts axes on an empty figure.
        width: in inches.
        height: in inches.
    """
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
    return figure


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an element of a page: colours as variables, ids of its own, nothing that is fetched.

    Args:
        figure: from `draw`.
        name: unique on the page; starts every id.
        description: for who cannot see it.
    """
    file = io.StringIO()
    with _style(), warnings.catch_warnings():
        # The page's own fonts draw the text; whether this one has every letter of a name does not matter.
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


def whole_file(figure: Figure, kind: str) -> bytes:
    """The figure as a file of its own in the light palette, "svg" or "pdf"; the same bytes for the same figure.

    A PDF embeds its font; an SVG keeps its text as text.
    """
    file = io.BytesIO()
    unsaid = {"svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer")}[kind]
    with _style(), warnings.catch_warnings():
        # The font lacks letters of some names; a box in their place is no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format=kind, facecolor=PAPER, metadata=dict.fromkeys(unsaid))
    return file.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def training_accuracy(run: FinishedRun, series: int) -> Draw:
    """One run: under attack on training images, and clean and under attack on the held-out part."""
    lines = (
        ("held out, clean", "validation_clean_accuracy", MUTED, _DASHES[2]),
        ("training, under attack", "train_adversarial_accuracy", INK, _DASHES[1]),
        ("held out, under attack", "validation_robust_accuracy", series_colour(series), "-"),
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
            late = best[0] > 0.7 * run.metrics[-1]["epoch"]
            axes.annotate(
                f"best, epoch {run.best}",
                best,
                (4 if late else 0, 7),
                textcoords="offset points",
                ha="right" if late else "center",
            )
        share_axis(axes, "accuracy")
        epoch_axis(axes)
        legend_above(figure, columns=1)

    return paint


def held_out_robustness(runs: Sequence[FinishedRun]) -> Draw:
    """Robust accuracy on the held-out part, all runs."""

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
        _percent_axis(axes)
        axes.set_ylabel("robust accuracy, held out")
        legend_above(figure, columns=2)

    return paint


def training_loss(runs: Sequence[FinishedRun]) -> Draw:
    """Each run's own objective on its training images."""

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


def robust_against_eps(runs: Sequence[FinishedRun], norm: str) -> Draw:
    """Robust accuracy over radii of one norm with its 95 % band; the radius of training is marked."""

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
            plot_series(axes, grid, share, run_label(run), number, every=1)
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
        share_axis(axes, "robust accuracy")
        legend_above(figure, columns=2)

    return paint


def eps_curve(run: FinishedRun, norm: str) -> tuple[list[float], ...] | None:
    """Radii, robust accuracy at each, and its 95 % interval; None where the run was not evaluated over them."""
    if run.main is None or run.main.norm != norm or not len(run.main.records.eps_grid):
        return None
    records = run.main.records
    grid, right = records.eps_grid, records.robust_at_eps.sum(axis=0)
    if grid[0] > 0:
        # At radius 0 there is nothing to attack: clean accuracy.
        grid, right = np.append(0, grid), np.append(records.clean_correct.sum(), right)
    low, high = zip(*(wilson_interval(int(each), len(records)) for each in right), strict=True)
    return grid.tolist(), (right / len(records)).tolist(), list(low), list(high)


def reliability_diagram(probabilities: Any, labels: Any, series: int) -> Draw:
    """Accuracy by confidence, and below it how many images have which confidence."""
    diagram = reliability(probabilities, labels)
    filled = diagram.count > 0
    centre, width = (diagram.edges[1:] + diagram.edges[:-1]) / 2, diagram.edges[1]

    def paint(figure: Figure) -> None:
        top, bottom = figure.subplots(2, sharex=True, height_ratios=(4, 1.1))
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        top.bar(
            centre[filled], diagram.accuracy[filled], width * 0.92, color=series_colour(series), alpha=0.22, linewidth=0
        )
        # The area says how many images a point stands for, so that a bin of two is not read as one of two hundred.
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
        share_axis(top, "accuracy")
        top.text(
            0.04, 0.95, f"ECE {ece(probabilities, labels):.3f}", transform=top.transAxes, va="top", fontweight="bold"
        )
        bottom.bar(centre, diagram.count / diagram.count.sum(), width * 0.92, color=series_colour(series), alpha=0.7)
        bottom.set_xlim(0, 1)
        bottom.set_ylabel("images")
        _percent_axis(bottom)
        bottom.set_xlabel("confidence")
        bottom.xaxis.set_major_formatter(percent_text)

    return paint


def class_robustness(runs: Sequence[FinishedRun]) -> Draw:
    """Robust accuracy by class, hardest class of the first run at the top."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        shown = [(number, run, run.main.records) for number, run in enumerate(runs) if run.main is not None]
        order = np.argsort(robust_by_class(shown[0][2]))[::-1]
        for number, run, records in shown:
            axes.plot(
                robust_by_class(records)[order],
                range(len(order)),
                linestyle="none",
                marker=_MARKERS[number % len(_MARKERS)],
                color=series_colour(number),
                markersize=5,
                label=run_label(run),
            )
        axes.set_yticks(range(len(order)), [shorten(shown[0][2].classes[k], 14) for k in order])
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(percent_text)
        axes.set_xlabel("robust accuracy")
        legend_above(figure, columns=2)

    return paint


def robust_by_class(records: Records) -> Any:
    """Robust accuracy of each class, float64 [K]; 0 for one without images."""
    total = np.bincount(records.label, minlength=len(records.classes))
    right = np.bincount(records.label, weights=records.robust, minlength=len(records.classes))
    return right / np.maximum(total, 1)


def plot_series(
    axes: Axes, x: Sequence[float], y: Sequence[float], label: str, style: int, every: int | None = None
) -> None:
    """One run's line, in its colour and dashes; marked at every point if asked, or if there is but one."""
    axes.plot(
        x,
        y,
        label=label,
        color=series_colour(style),
        linestyle=_DASHES[style % len(_DASHES)],
        marker=_MARKERS[style % len(_MARKERS)] if every or len(x) == 1 else None,
    )


def _mark_best(axes: Axes, run: FinishedRun, style: int) -> tuple[int, float] | None:
    """Where the mark is; None if there is no such epoch, or it was not validated."""
    line: dict[str, Any] = next((line for line in run.metrics if line["epoch"] == run.best), {})
    value = line.get("validation_robust_accuracy")
    if run.best is None or value is None:
        return None
    marker = _MARKERS[style % len(_MARKERS)]
    axes.plot([run.best], [value], marker=marker, markersize=7, color=series_colour(style), markeredgecolor=PAPER)
    return run.best, value


def series_colour(number: int) -> str:
    """The same for a run in every figure."""
    return SERIES[number % len(SERIES)]


def run_label(run: FinishedRun) -> str:
    """Its name, as a legend shows it."""
    # A label that starts with an underscore is left out of legends.
    return shorten(run.name).replace("_", "\N{ZERO WIDTH SPACE}_", 1) if run.name[:1] == "_" else shorten(run.name)


def percent_text(value: float, _: float) -> str:
    """A tick of an axis of shares."""
    return f"{100 * value:.0f}%"


def epoch_axis(axes: Axes) -> None:
    """Whole epochs along x."""
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.set_xlabel("epoch")


def _percent_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(percent_text)


def share_axis(axes: Axes, label: str) -> None:
    """0 to 100 % along y, of what the label says."""
    axes.set_ylim(0, 1)
    axes.set_ylabel(label)
    _percent_axis(axes)


def legend_above(figure: Figure, columns: int) -> None:
    """Of all panels, above them."""
    figure.legend(loc="outside upper left", ncols=columns, fontsize=8.2)
