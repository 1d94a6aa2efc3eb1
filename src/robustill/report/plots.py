"""The style of the report's figures, and their rendering: legible on a phone, and distinguishable without colour.

A figure is drawn in the light palette. On the page its colours become CSS variables, so that it follows the
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

from robustill.core.formatting import shorten

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
MAX_COLOURED = len(SERIES)
"""Maximum number of runs or arms with a colour; further ones are grey lines without a name."""
_SHORT_NAME = 15
"""Maximum number of letters of names that stand in two columns."""
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


def plot_series(
    axes: Axes, x: Sequence[float], y: Sequence[float], label: str, number: int, *, markers: bool = False
) -> None:
    """Plot the line of one run or arm in its colour and dashes; with markers if requested, or if it is one point."""
    if number >= MAX_COLOURED:
        axes.plot(x, y, color=LINE, linewidth=1.0, zorder=1.5)
        return
    axes.plot(
        x,
        y,
        label=legend_label(label),
        color=series_colour(number),
        linestyle=_DASHES[number % len(_DASHES)],
        marker=series_marker(number) if markers or len(x) == 1 else None,
        # The first is on top, and the first in the legend.
        zorder=2.5 - 0.01 * number,
    )


def fill_band(axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], number: int) -> None:
    """Shade the area between two curves in the colour of one run or arm."""
    if number < MAX_COLOURED:
        axes.fill_between(x, low, high, color=series_colour(number), alpha=0.14, linewidth=0)


def series_colour(number: int) -> str:
    """Return the colour of a run or arm, the same in every figure."""
    return SERIES[number % len(SERIES)]


def series_marker(number: int) -> str:
    """Return the marker of a run or arm, the same in every figure."""
    return _MARKERS[number % len(_MARKERS)]


def legend_label(name: str) -> str:
    """Return a name as legends show it."""
    label = shorten(name)
    # Matplotlib omits labels that start with an underscore from legends.
    return label.replace("_", "\N{ZERO WIDTH SPACE}_", 1) if name.startswith("_") else label


def percent_text(value: float, _: float) -> str:
    """Format a tick of an axis in percent: 0.125 is 12.5%."""
    return f"{100 * value:.4g}%"


def epoch_axis(axes: Axes) -> None:
    """Label the x axis with whole epochs."""
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.set_xlabel("epoch")


def percent_axis(axes: Axes, label: str, limits: tuple[float, float] | None = None) -> None:
    """Fit the y axis to the shares that have been drawn, and label it.

    Args:
        axes: the axes, with everything that has data.
        label: what the shares are.
        limits: the smallest and the largest share, if several panels have the same axis.
    """
    low, high = axes.dataLim.intervaly if limits is None else limits
    axes.set_ylim(*share_limits(low, high))
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(percent_text)


def share_limits(low: float, high: float) -> tuple[float, float]:
    """Return the ends of an axis for shares from low to high: a little wider, and at least a tenth wide.

    Example:
        >>> share_limits(0.0, 0.5), share_limits(0.98, 1.0)
        ((0.0, 0.53), (0.88, 1.02))
    """
    margin = 0.06 * (high - low)
    bottom, top = max(0.0, low - margin), min(1.02, high + margin)
    if high > 0.97:
        top = 1.02
    if top - bottom < 0.1:
        bottom = max(0.0, min(bottom, top - 0.14))
        top = max(top, bottom + 0.1)
    return round(bottom, 4), round(top, 4)


def legend_above(figure: Figure) -> None:
    """Place one legend for all axes above them, in two columns if the names are short."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    if labels:
        figure.legend(loc="outside upper left", ncols=legend_columns(labels), fontsize=8.2)


def legend_columns(labels: Sequence[str]) -> int:
    """Return the number of columns of a legend, so that no name runs into the next column or out of the figure."""
    return 2 if max(map(len, labels)) <= _SHORT_NAME else 1


def legend_height(labels: Sequence[str]) -> float:
    """Return the height of a legend in inches."""
    named = [legend_label(label) for label in labels[:MAX_COLOURED]]
    return 0.17 * -(-len(named) // legend_columns(named)) if named else 0.0


def with_alpha(colour: str, alpha: float) -> tuple[float, float, float, float]:
    """Return a colour "#rrggbb" with an opacity, as (red, green, blue, alpha) in [0,1]."""
    red, green, blue = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue, alpha
