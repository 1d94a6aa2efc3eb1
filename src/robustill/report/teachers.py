"""A ranking of candidate teachers as rows, sentences and a figure, for the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustill.analysis.teacher_ranking import TeacherRanking
from robustill.core.formatting import percent, points, share_of_images, shorten
from robustill.report.panels import Panel, Row
from robustill.report.plots import INK, MUTED, SERIES, Draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKING_COLUMNS = ("clean", "robust", "transfer", "ECE", "ECE\nadv", "H bin", "conf\nbin", "H else", "differs")
"""The columns of measures, in the order of `RankingRow.cells`."""
RANKING_LEGEND = (
    "transfer: accuracy on the attacks of the baselines; H, conf: entropy as a share of log K and confidence on these, "
    "in the bin of images that no baseline holds and elsewhere; differs: share of top labels unlike the others'"
)


@dataclass(frozen=True, kw_only=True)
class RankingRow:
    """One candidate as texts."""

    name: str
    gain: str
    interval: str
    alpha: str
    temperature: str
    cells: tuple[str, ...]


def ranking_rows(ranking: TeacherRanking) -> Iterator[RankingRow]:
    """Yield the candidates, the best first."""
    for each in ranking.teachers:
        gain, m = each.prediction, each.measures
        values = (
            m.clean_accuracy,
            m.robust_accuracy,
            m.transfer_accuracy,
            m.ece_clean,
            m.ece_adversarial,
            m.entropy_unlearnable,
            m.confidence_unlearnable,
            m.entropy_elsewhere,
            each.disagreement,
        )
        yield RankingRow(
            name=each.name,
            gain=points(gain.gain),
            interval=f"{points(gain.low)} to {points(gain.high)}",
            alpha=f"{each.alpha:g}",
            temperature=f"{m.temperature:.2g}",
            cells=tuple("–" if math.isnan(value) else f"{value:.2f}" for value in values),
        )


def ranking_conditions(ranking: TeacherRanking) -> str:
    """Return the images, the threat and the baselines in one line."""
    known, baselines = ranking.conditions, ranking.baselines
    images = share_of_images(int(known["num_images"]), int(known["of_images"]))
    return (
        f"{known['data']} {known['split']}, {known['threat']}, {known['attack']}: {images}; "
        f"{known['baselines']['number']} baselines of {known['baselines']['epochs']} epochs, "
        f"{percent(baselines['robust_accuracy'])} robust, all of which lose {percent(baselines['unlearnable'])} of them"
    )


def evidence_line(ranking: TeacherRanking) -> str:
    """Return what the prediction was learned from, and how well it ranked teachers of data it had not seen."""
    evidence: dict[str, Any] = ranking.conditions["evidence"]
    ranked = "; ".join(
        f"{name} " + ", ".join(f"{value:.2f} at α {alpha}" for alpha, value in by_alpha.items())
        for name, by_alpha in evidence["spearman_left_out"].items()
    )
    return (
        f"predicted from {evidence['teachers']} teachers and their {evidence['students']} students; rank correlation "
        f"with what the students gained, each data set left out in turn: {ranked}"
    )


def ranking_panel(ranking: TeacherRanking) -> Panel:
    """Return the panel with the predicted gains and their intervals."""
    summary = "; ".join(f"{row.name} {row.gain} points, {row.interval}" for row in ranking_rows(ranking))
    return Panel(
        name="teachers",
        paint=_intervals(ranking),
        rows=lambda: _data(ranking),
        description=f"Predicted gain in robust accuracy over PGD-AT with averaged weights: {summary}.",
        title="Predicted gain in robust accuracy, points",
        height=0.9 + 0.3 * len(ranking.teachers),
    )


def _data(ranking: TeacherRanking) -> Iterator[Row]:
    for each in ranking.teachers:
        for alpha, gain in each.predictions.items():
            yield {"candidate": each.name, "alpha": alpha, "gain": gain.gain, "low": gain.low, "high": gain.high}


def _intervals(ranking: TeacherRanking) -> Draw:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for number, each in enumerate(ranking.teachers):
            gain = each.prediction
            axes.plot([100 * gain.low, 100 * gain.high], [number, number], color=SERIES[0], solid_capstyle="butt")
            axes.plot([100 * gain.gain], [number], "o", color=SERIES[0])
        axes.set_yticks(range(len(ranking.teachers)), [shorten(each.name, 24) for each in ranking.teachers], color=INK)
        axes.set_ylim(len(ranking.teachers) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("points, 95 % interval")

    return paint
